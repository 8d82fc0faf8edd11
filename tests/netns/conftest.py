"""Fixtures for tests with real packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.netns import namespaces
from tests.netns.changes import MEANS
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nobody else: legacy iptables has one lock for the whole machine, whichever namespace it works on."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))


@pytest.fixture
def pod() -> Iterator[namespaces.Pod]:
    need_namespaces()
    with namespaces.pod() as made:
        yield made


@pytest.fixture(params=MEANS)
def means(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], str]:
    """Flags for one backend and variant, and that variant's name."""
    return MEANS[request.param]
