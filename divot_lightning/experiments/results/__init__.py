"""Read the results of an experiment, and compare them."""
