"""Labs need root, namespaces and the extra `lab`."""

from __future__ import annotations

import pytest

from tests.privileges import need_namespaces


@pytest.fixture(scope="session", autouse=True)
def _namespaces() -> None:
    need_namespaces()
