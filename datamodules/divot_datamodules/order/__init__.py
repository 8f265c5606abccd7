"""The order of samples as a pure function of the recipe, and where training stands in it."""
