"""What scores say about each other."""
