"""Files: what keeps them from being written, locks, text that is safe to print."""
