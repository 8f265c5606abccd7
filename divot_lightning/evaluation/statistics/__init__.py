"""Comparison of scores."""
