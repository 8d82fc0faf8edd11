"""Kills runs at random moments, and looks at what is left, and at what the next run makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Namespace

REDIRECT = ("-u", "1337", "-i", "*", "-b", "9080")
TPROXY = ("-u", "1337", "-i", "10.0.0.0/8", "-b", "*", "-m", "TPROXY")
DUAL = ("--layout", "current", *TPROXY, "--dual-stack", "-k", "vm0")
OTHER_MARK = (*DUAL, "-t", "77", "-r", "88")
WAYS = (("--iptables-variant", "nft"), ("--iptables-variant", "legacy"), ("--backend", "nft"))
CLEAN = ("clean",)
COMMANDS = (CLEAN, *((*plan, *way) for plan in (REDIRECT, TPROXY, DUAL, OTHER_MARK) for way in WAYS))
LONGEST = 0.4  # seconds after its start until a run is killed


class Kill(NamedTuple):
    """One run that was killed, and how the next one ended.

    Attributes:
        before: the command whose work was in place.
        killed: the command whose run was killed.
        after: the seconds from its start to its end.
        following: the next command, which was let be.
        is_half: whether the killed run left neither the state before it nor the one that it should have made.
        is_repaired: whether the next run made the state that it makes in a fresh namespace.
    """

    before: tuple[str, ...]
    killed: tuple[str, ...]
    after: float
    following: tuple[str, ...]
    is_half: bool
    is_repaired: bool


def state(namespace: Namespace) -> list[str]:
    """Give all that a run may change; in an order of its own, which depends on what was there first, are chains."""
    rules = [namespace.save(variant, family) for variant in ("nft", "legacy") for family in ("ipv4", "ipv6")]
    native = namespace.run("nft", "-s", "list", "ruleset").stdout
    tables = [part for part in native.split("\ntable ") if "istio-init {" in part.partition("\n")[0]]
    lines = ["\n".join(sorted(text.splitlines())) for text in (*rules, "\n".join(tables))]
    return [*lines, namespace.surroundings()]


def kill_runs(namespace: Namespace, count: int, seed: int) -> Iterator[Kill]:
    """Kill runs, one after the other; the namespace is cleaned before each and at the end.

    Args:
        namespace: where to do so.
        count: how many.
        seed: of the choice of commands and moments.
    """
    random = Random(seed)  # noqa: S311 - no secret
    made: dict[tuple[str, ...], list[str]] = {}
    for _ in range(count):
        before, killed, following = random.sample(COMMANDS, 3)
        for command in (before, killed, following):
            if command not in made:
                namespace.istio_init(*CLEAN)
                namespace.istio_init(*command)
                made[command] = state(namespace)
        namespace.istio_init(*CLEAN)
        namespace.istio_init(*before)
        after = random.uniform(0, LONGEST)
        _run_and_kill(namespace, killed, after)
        left = state(namespace)
        namespace.istio_init(*following)
        is_half = left not in (made[before], made[killed])
        yield Kill(before, killed, after, following, is_half, state(namespace) == made[following])
    namespace.istio_init(*CLEAN)


def _run_and_kill(namespace: Namespace, words: tuple[str, ...], seconds: float) -> None:
    """Run a command, and kill it with all that it started, as the end of a container does."""
    command = ["nsenter", f"--net={namespace.path}", sys.executable, "-m", "istio_init", *words]
    running = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *command],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ,
    )
    time.sleep(seconds)
    running.send_signal(signal.SIGKILL)
    running.wait(timeout=60)
