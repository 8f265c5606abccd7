"""Plan the steps of an experiment: read its recipe, list its trials, match and estimate their cost."""
