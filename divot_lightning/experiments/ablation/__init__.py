"""Ablations: the same pipeline with one thing changed at a time, run as ordinary runs and compared in one table."""
