"""The built-in generation heads, which are found through entry points like the heads of any plug-in."""
