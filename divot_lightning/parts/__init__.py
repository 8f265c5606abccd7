"""What can be exchanged: one registry, and the base class of each kind of part."""
