"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A deadline is an assertion on wall time, which a machine with other work misses.
settings.register_profile("tlcore", deadline=None)
settings.load_profile("tlcore")
