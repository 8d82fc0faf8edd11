"""Tools that hang or die in random places: each wait has an end, and what was begun is rolled back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from tests.netns.kills import CLEAN, DUAL, OTHER_MARK, REDIRECT, TPROXY, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Namespace

# What a tool does instead of its work, or after it; $PID is a file for the number of the process that hangs.
HANGS = {
    "sleeps": 'echo $$ >"$PID"; exec sleep 60',
    "ignores-signals": 'trap "" TERM HUP INT; echo $$ >"$PID"; sleep 60; sleep 60',
    "with-a-child": 'sleep 60 & echo $! >"$PID"; wait',
    "closes-its-pipes": 'echo $$ >"$PID"; exec sleep 60 <&- >&- 2>&-',
    "stops": 'echo $$ >"$PID"; kill -STOP $$',
    "talks-for-ever": 'echo $$ >"$PID"; while :; do echo "# talk"; sleep 0.01; done',
}
DEATHS = {
    "killed": "kill -KILL $$",
    "no-process": "echo 'fork: Resource temporarily unavailable' >&2; exit 1",
    "no-space": "echo 'No space left on device' >&2; exit 4",
}
TOOLS = {
    ("--iptables-variant", "nft"): ("iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-restore"),
    ("--iptables-variant", "legacy"): ("iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy-restore"),
    ("--backend", "nft"): ("nft",),
}
TIMEOUT = 1  # seconds, of --tool-timeout
LONGEST = 10  # seconds until a run with that limit must have ended, on a busy machine as well


class Trial(NamedTuple):
    """One run with a tool that hangs or dies.

    Attributes:
        command: the run.
        tool: which tool.
        way: what it did.
        broken: the promises that did not hold.
    """

    command: tuple[str, ...]
    tool: str
    way: str
    broken: tuple[str, ...]


def stand_in(directory: Path, tool: str, script: str) -> dict[str, str]:
    """Put a tool on the PATH that runs a script; return the environment."""
    path = directory / tool
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}", "PID": str(directory / "pid")}


def has_ended(directory: Path, seconds: float) -> bool:
    """Return whether the process that hung ends within a time; one that never ran has ended."""
    file = directory / "pid"
    number = file.read_text().strip() if file.exists() else ""
    stat = Path("/proc") / (number or "none") / "stat"
    deadline = time.monotonic() + seconds
    while stat.exists() and ") Z " not in stat.read_text():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def try_tools(namespace: Namespace, count: int, seed: int) -> Iterator[Trial]:
    """Let tools hang or die; the namespace is cleaned at the end.

    Args:
        namespace: where to do so.
        count: how often.
        seed: of the choice of commands, tools, and what they do.
    """
    random = Random(seed)  # noqa: S311 - no secret
    ways = {**HANGS, **DEATHS}
    for _ in range(count):
        means = random.choice(list(TOOLS))
        before, plan = random.sample((REDIRECT, TPROXY, DUAL, OTHER_MARK), 2)
        tool, way = random.choice(TOOLS[means]), random.choice(list(ways))
        comes_late = tool.endswith("-restore") and random.random() < 0.5
        real = f'{shutil.which(tool)} "$@"'
        work = f"{real} && " if comes_late else ""
        namespace.istio_init(*CLEAN)
        namespace.istio_init(*means, *before)
        command = (*means, *plan, "--tool-timeout", str(TIMEOUT), "--lock-wait", "0")
        with TemporaryDirectory() as directory:
            once = f'[ -e "$PID.ran" ] && exec {real}; : >"$PID.ran"'  # so that a rollback finds a tool that works
            script = f"{once}\n{work}{{ {ways[way]}; }}"
            broken = tuple(_broken(namespace, command, stand_in(Path(directory), tool, script), Path(directory)))
        yield Trial(command, tool, f"{way}{' after its work' if work else ''}", broken)
    namespace.istio_init(*CLEAN)


def _broken(namespace: Namespace, command: tuple[str, ...], environment: dict[str, str], directory: Path) -> Iterator[str]:
    was, started = state(namespace), time.monotonic()
    failed = namespace.istio_init(*command, environment=environment, check=False)
    took = time.monotonic() - started
    if failed.returncode not in (4, 5):
        yield f"exit code {failed.returncode}: {failed.stderr}"
    if took > LONGEST:
        yield f"it took {took:.1f} s"
    if "Traceback" in failed.stderr:
        yield failed.stderr
    if state(namespace) != was:
        yield f"something else is in place: {failed.stderr}"
    if not has_ended(directory, TIMEOUT):
        yield "the tool is still there"
