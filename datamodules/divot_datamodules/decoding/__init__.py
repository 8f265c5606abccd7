"""Decoding: from the bytes of media files to frames, clips and samples."""
