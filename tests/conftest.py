"""Settings of all tests."""

from hypothesis import settings

# A busy machine is slow; no test has a bound in seconds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
