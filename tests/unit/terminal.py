"""A shell at a terminal, as a user has it, in which keys are pressed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROMPT = "ready>"
TIMEOUT = 60  # seconds; each key of completion starts the program


class Terminal:
    """A terminal with a shell in it.

    Args:
        argv: the shell.
        environment: all of its environment.
        directory: where it starts.
    """

    def __init__(self, argv: list[str], environment: Mapping[str, str], directory: Path) -> None:
        self._master, slave = pty.openpty()
        self._shell = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=dict(environment), cwd=directory, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._master)

    def press(self, keys: str, awaited: str = PROMPT) -> str:
        """Type, and return what is shown until an awaited text is."""
        os.write(self._master, keys.encode())
        shown, deadline = "", time.monotonic() + TIMEOUT
        while awaited not in shown:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{awaited!r} was not shown, but {shown!r}"
            shown += os.read(self._master, 4096).decode(errors="replace")
        return shown
