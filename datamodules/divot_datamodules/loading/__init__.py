"""From the order to batches: decoding workers, shared memory, skipped samples."""
