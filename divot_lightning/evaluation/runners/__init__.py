"""Runners: what a run's models make of the items of a benchmark, by the kind of prediction."""
