"""Checkpoints and component folders: what they hold, how they are written, read, kept and verified."""
