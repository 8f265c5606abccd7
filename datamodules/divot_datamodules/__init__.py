"""Data modules: videos, or cached features, with texts from shards and jsonl lists; and the toy world."""
