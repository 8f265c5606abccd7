"""Run steps side by side, and remember which are done."""
