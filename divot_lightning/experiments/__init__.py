"""Graphs of steps: the runner, ablations, the quickstart and their reports."""
