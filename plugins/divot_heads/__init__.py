"""Built-in generation heads, found through the same entry points as any other plugin."""
