"""The processes of a job: ranks, sync checks, signals, launching, building without memory."""
