"""What a signal leaves of a run of CI: nothing. Stand-ins take the place of what it runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.test_engine_script import ROOT, TIMEOUT, until

if TYPE_CHECKING:
    from collections.abc import Iterator

# Waits for a program, as scripts/test waits for pytest. That one cleans up when it is interrupted; its child ignores that.
ENDLESS = """#!/usr/bin/env bash
bash -c 'trap "touch $0.cleaned; exit 2" INT; sleep 120 & touch "$0.started"; wait' "${0##*/}" || exit
"""
PARTS = ("test", "test-docker")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for directory in (".ci", "scripts", "temporary"):
        (tmp_path / directory).mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    nothing = dict.fromkeys(("setup", "check"), "#!/bin/sh\n")
    for name, text in {**nothing, **dict.fromkeys(PARTS, ENDLESS)}.items():
        script = tmp_path / "scripts" / name
        script.write_text(text, encoding="ascii")
        script.chmod(0o755)
    return tmp_path


def processes(checkout: Path) -> list[int]:
    """List the processes that work in a checkout."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (process / "cwd").readlink() == checkout:
                found.append(int(process.name))
    return found


@contextmanager
def running(checkout: Path, signals: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run CI as far as its tests, with an option of env(1) for the signals that it inherits."""
    environment = {**os.environ, "TMPDIR": str(checkout / "temporary")}
    with subprocess.Popen(["env", signals, "bash", ".ci/run"], cwd=checkout, env=environment) as ci:
        try:
            until(lambda: all((checkout / f"{part}.started").exists() for part in PARTS))
            yield ci
        finally:
            for process in processes(checkout):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "signals"),
    [
        (signal.SIGHUP, "--default-signal=HUP,INT"),
        (signal.SIGINT, "--default-signal=HUP,INT"),
        (signal.SIGTERM, "--default-signal=HUP,INT"),
        (signal.SIGTERM, "--ignore-signal=HUP,INT"),
    ],
    ids=["HUP", "INT", "TERM", "TERM under nohup"],
)
def test_a_signal_interrupts_all_that_ci_runs_and_waits_for_its_end(
    checkout: Path, number: signal.Signals, signals: str
) -> None:
    with running(checkout, signals) as ci:
        ci.send_signal(number)
        assert ci.wait(TIMEOUT) == 128 + number
        assert [part for part in PARTS if not (checkout / f"{part}.cleaned").exists()] == []
        until(lambda: not processes(checkout))  # those that were killed end in the kernel's own time
    assert list((checkout / "temporary").iterdir()) == []
