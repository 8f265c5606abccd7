"""Preparation of data before training: packing into shards, inspection, checks of cached features."""
