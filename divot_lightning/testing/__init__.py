"""Public helpers for the tests of third parties."""
