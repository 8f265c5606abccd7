"""The models of the paper in pure torch, without Lightning."""
