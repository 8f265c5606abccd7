"""The order of samples as a pure function of the recipe, and the position of training in it."""
