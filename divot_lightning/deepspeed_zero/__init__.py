"""DeepSpeed ZeRO as a Lightning strategy, on top of the checkpoint format."""
