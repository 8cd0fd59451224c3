"""Settings of all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says nothing about the code on a shared machine. The everyday profile keeps the pure tests
# within seconds; HYPOTHESIS_PROFILE=thorough looks longer, before a release or after a change of a parser.
settings.register_profile("everyday", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))
