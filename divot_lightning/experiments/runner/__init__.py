"""Runs steps side by side and remembers what is done."""
