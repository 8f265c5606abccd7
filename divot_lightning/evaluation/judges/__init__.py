"""Judges of open-ended answers."""
