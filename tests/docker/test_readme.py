"""The README's commands that need a container engine, as they stand there, in their order."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.test_readme import CONTAINERS, SHELL

if TYPE_CHECKING:
    from pathlib import Path

BLOCKS = [text for text in SHELL if text.startswith(CONTAINERS)]
# What a block prints, by its first words.
PROMISED = {"docker build": "", "docker run": "ISTIO_OUTPUT", "docker-compose": '"service": "reviews"'}


def test_every_block_has_a_promise() -> None:
    assert [" ".join(text.split()[:2]) if text.startswith("docker ") else text.split()[0] for text in BLOCKS] == list(
        PROMISED
    )


@pytest.mark.parametrize(("commands", "promised"), list(zip(BLOCKS, PROMISED.values(), strict=True)), ids=list(PROMISED))
def test_containers_of_the_readme_work(commands: str, promised: str, root: Path) -> None:
    done = subprocess.run(["bash", "-euc", commands], check=False, capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    assert promised in done.stdout
