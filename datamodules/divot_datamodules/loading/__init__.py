"""Loading: from the order to batches, with decoding workers, shared memory and the log of skipped samples."""
