"""How hypothesis runs here: a slow machine is no failure, and nothing is kept between runs."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None, database=None)
settings.load_profile("unit")
