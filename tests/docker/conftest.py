"""These tests need images and an engine: scripts/test-docker makes both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip where the script that makes the engine did not start these tests, or found none; in CI it fails by itself."""
    if reason := os.environ.get("ISTIO_INIT_NO_ENGINE"):
        pytest.skip(reason)
    if "ISTIO_INIT_ENGINE_NAMESPACE" not in os.environ:
        pytest.skip("scripts/test-docker runs these, with an engine of its own")


@pytest.fixture(scope="session")
def docker_compose_command() -> str:
    return "docker-compose"


@pytest.fixture(scope="session")
def docker_compose_file(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.rootpath / "docker" / "compose.yaml")


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up -d"]


@pytest.fixture
def root(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath
