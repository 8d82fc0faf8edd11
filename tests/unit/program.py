"""The program as a process, started as users start it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Result = subprocess.CompletedProcess[str]

POD = ("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", "")
TPROXY = ("-u", "1337", "-m", "TPROXY", "-b", "*")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "istio_init", *arguments]


def call(*arguments: str, environment: dict[str, str] | None = None, user: int | None = None) -> Result:
    """Run the program where it finds no iptables, so that no mistake in a test writes a rule."""
    return subprocess.run(
        command(*arguments),
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "", **(environment or {})},
        timeout=60,
        user=user,
    )


def refused(done: Result) -> str:
    """Give the one line that bad input ends with."""
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("istio-init: error: ")
    return line


def printed(*arguments: str, environment: dict[str, str] | None = None) -> str:
    done = call("--dry-run", *arguments, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
