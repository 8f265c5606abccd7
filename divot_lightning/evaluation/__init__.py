"""Metrics of reconstruction, understanding and generation."""
