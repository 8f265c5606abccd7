"""The processes of a job: ranks, agreement, signals, launching, building without memory."""
