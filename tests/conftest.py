"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says nothing about the code on a shared machine.
settings.register_profile("specdecode", deadline=None)
settings.load_profile("specdecode")
