"""Evaluate runs on benchmarks: predictions, judges, metrics, and scores with their protocol."""
