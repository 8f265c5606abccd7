"""Data modules: the toy world, video-text shards, instruction data and cached features."""
