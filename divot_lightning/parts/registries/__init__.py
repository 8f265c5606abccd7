"""Find parts by name: a registry per kind, short names in recipes, and the classes that a stored folder may name."""
