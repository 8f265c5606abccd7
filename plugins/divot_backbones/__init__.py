"""Networks that others have published, as parts of a run."""
