"""Predict what a recipe needs before anything is allocated."""
