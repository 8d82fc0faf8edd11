"""A webhook as a process on this machine, and certificates for it, made as the documentation says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.webhook.live import Certificates, Webhook, stand_in_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates.make(tmp_path / "certificates")


@pytest.fixture
def webhook(certificates: Certificates) -> Iterator[Webhook]:
    """Give the real program."""
    with Webhook.start(certificates) as started:
        yield started


@pytest.fixture
def stand_in(certificates: Certificates) -> Iterator[Webhook]:
    """Give the server with an injector that does what the pod's annotation says."""
    with Webhook.start(certificates, stand_in_arguments(certificates.certificate, certificates.key)) as started:
        yield started
