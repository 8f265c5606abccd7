"""Released Divot checkpoints: key names and conversions."""
