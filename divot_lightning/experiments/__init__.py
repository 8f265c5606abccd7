"""Experiments: steps with inputs, outputs and a command each, planned from a recipe, run, measured and reported."""
