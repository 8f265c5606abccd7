"""The parts of a run that can be exchanged: one registry for all kinds, and the base class of each kind."""
