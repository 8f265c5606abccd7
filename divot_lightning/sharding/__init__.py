"""Training on several processes: ZeRO strategies, what ranks agree on, checkpoints of sharded state."""
