"""The page of `divot demo`: reconstruct, ask, generate and tell stories with trained runs, in a browser."""
