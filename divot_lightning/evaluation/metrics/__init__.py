"""Metrics: answers, captions, pictures, features, the toy oracle."""
