"""Shards made, inspected and encoded before training."""
