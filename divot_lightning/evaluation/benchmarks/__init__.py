"""Readers of benchmarks."""
