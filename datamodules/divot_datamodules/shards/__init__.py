"""Where samples lie: tar shards, jsonl lists, their indexes, copies and settings."""
