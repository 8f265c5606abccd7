"""Training runs: the command line, the run folder, optimization and what happens around steps."""
