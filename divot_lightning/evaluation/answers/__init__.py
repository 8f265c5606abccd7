"""Read answers: which option they choose, and whether they are right."""
