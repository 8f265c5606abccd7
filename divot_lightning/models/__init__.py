"""Pure torch models: nothing in here knows Lightning."""
