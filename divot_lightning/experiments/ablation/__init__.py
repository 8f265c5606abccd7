"""Ablations: one pipeline, trained several times with one thing changed each time, and compared in one table."""
