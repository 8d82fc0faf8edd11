"""Random inputs, a few of those that `scripts/soak fuzz` tries."""

from __future__ import annotations

from tests.fuzz import KINDS, fuzz

EACH, SEED = 60, 20261126  # inputs of each kind


def test_no_traceback_comes_of_any_input() -> None:
    assert list(fuzz(EACH * len(KINDS), SEED)) == []
