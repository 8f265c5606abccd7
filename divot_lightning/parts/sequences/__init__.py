"""Token sequences: the texts and clips of a sample as one sequence, and the rows of a batch."""
