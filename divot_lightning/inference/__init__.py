"""Inference from finished runs: reconstruct, ask, generate."""
