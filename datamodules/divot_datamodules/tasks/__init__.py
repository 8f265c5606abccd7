"""What a sample teaches."""
