"""From bytes to frames and samples."""
