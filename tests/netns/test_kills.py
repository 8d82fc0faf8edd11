"""A run that is killed, at whatever moment, leaves nothing that the next one does not see and repair."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.netns.kills import DUAL, REDIRECT, kill_runs, state

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Pod

KILLS, SEED = 20, 20261125


def test_the_next_run_repairs_what_a_killed_one_left(pod: Pod) -> None:
    kills = list(kill_runs(pod.inside, KILLS, SEED))
    assert len(kills) == KILLS
    assert [kill for kill in kills if not kill.is_repaired] == []


def test_a_tool_that_outlives_a_killed_run_is_waited_for(pod: Pod, tmp_path: Path) -> None:
    """Else it would write its part after the next run has looked, and jumps would stand twice."""
    pod.inside.istio_init(*DUAL)
    wanted = state(pod.inside)
    pod.inside.istio_init("clean")
    started = tmp_path / "started"
    real = shutil.which("iptables-nft-restore")
    tool = tmp_path / "iptables-nft-restore"
    tool.write_text(f'#!/bin/sh\nscript=$(cat)\n: >{started}\nsleep 1\nprintf "%s\\n" "$script" | exec {real} "$@"\n')
    tool.chmod(0o755)
    command = ["nsenter", f"--net={pod.inside.path}", sys.executable, "-m", "istio_init", *REDIRECT]
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=path)
    deadline = time.monotonic() + 30
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait(timeout=60)
    pod.inside.istio_init(*DUAL)
    assert state(pod.inside) == wanted
