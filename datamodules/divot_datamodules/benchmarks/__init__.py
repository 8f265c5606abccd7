"""Readers of published video benchmarks, from local folders; see `table` for which there are."""
