"""Random changes of backend, layout, mode and exclusions, while connections are established and new ones are opened."""

from __future__ import annotations

from itertools import permutations
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from istio_init.rules.model import TPROXY_MARK
from tests import cases
from tests.netns.echoes import Openings, echoes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Pod

# How the program is asked to reach the kernel; the variant is what its rules are then read with.
MEANS = {
    "restore-nft": (("--backend", "restore", "--iptables-variant", "nft"), "nft"),
    "restore-legacy": (("--backend", "restore", "--iptables-variant", "legacy"), "legacy"),
    "libiptc": (("--backend", "libiptc"), "legacy"),
}
WAYS = {**{name: flags for name, (flags, _) in MEANS.items()}, "nft": ("--backend", "nft")}
RULE_SETS = {"restore-nft": "iptables-nft", "restore-legacy": "iptables-legacy", "libiptc": "iptables-legacy", "nft": "nft"}
PAIRS = [(first, second) for first, second in permutations(WAYS, 2) if RULE_SETS[first] != RULE_SETS[second]]
ALL = ("-p", "15001", "-u", "1337", "-i", "*", "-b", "*")
CURRENT = ("--layout", "current")
MODES = {
    "redirect-1.0": ("-m", "REDIRECT", *ALL),
    "tproxy-1.0": ("-m", "TPROXY", *ALL),
    "redirect": (*CURRENT, "-m", "REDIRECT", *ALL),
    "tproxy": (*CURRENT, "-m", "TPROXY", *ALL),
}
# TPROXY of Istio 1.0 looks for sockets by the address that the client sees, so these end connections.
ENDING = {("redirect-1.0", "tproxy-1.0"), ("redirect", "tproxy-1.0")}
EXCLUSIONS = ((), ("-x", "10.1.0.0/16"), ("-x", "10.1.0.0/16,10.2.0.0/16"))
ROUND = 40  # changes during which the same connections must live on
NUMBER = 8  # established connections in each direction
CLIENTS = 2  # that open connections in each direction


class Round(NamedTuple):
    """What became of the connections during some changes.

    Attributes:
        commands: the changes.
        echoes: number of words that came back on established connections.
        openings: number of connections that were opened.
        bad: what became of those that died, escaped, or were refused, reset or left waiting.
    """

    commands: list[tuple[str, ...]]
    echoes: int
    openings: int
    bad: list[str]


def change_rules(pod: Pod, count: int, seed: int, openings: int = 0) -> Iterator[Round]:
    """Change rules.

    Args:
        pod: whose.
        count: number of changes.
        seed: of random choices.
        openings: how many connections must have been opened for each change before the next one.
    """
    random = Random(seed)  # noqa: S311 - to be the same each time
    left = count
    while left > 0:
        has_mark = random.random() < 0.5
        commands = [*_commands(random, min(left, ROUND), has_mark=has_mark)]
        left -= len(commands)
        yield _round(pod, commands, TPROXY_MARK if has_mark else 0, openings)


def _commands(random: Random, count: int, *, has_mark: bool) -> Iterator[tuple[str, ...]]:
    """Choose changes that end no connection: see ENDING, and with the mark, the rules that it needs stay."""
    first = mode = "tproxy" if has_mark else random.choice([*MODES])
    for _ in range(count):
        yield (*WAYS[random.choice([*WAYS])], *MODES[mode], *random.choice(EXCLUSIONS))
        if not has_mark:
            mode = random.choice([other for other in MODES if not {(mode, other), (first, other)} & ENDING])


def _round(pod: Pod, commands: list[tuple[str, ...]], mark: int, openings: int) -> Round:
    pod.inside.istio_init(*commands[0])
    with (
        echoes(pod, mark, NUMBER) as established,
        Openings(pod.outside, cases.POD, CLIENTS) as coming,
        Openings(pod.inside, cases.SERVICE, CLIENTS) as leaving,
    ):
        for number, command in enumerate(commands, start=1):
            pod.inside.istio_init(*command)
            while sum(coming.count) + sum(leaving.count) < number * openings:
                coming.stopping.wait(0.01)
        for each in established:
            each.await_round()
    bad = [line for each in established for line in (*each.died, *["escaped"] * each.escaped)]
    bad += [f"{number} new: {what}" for each in (coming, leaving) for what, number in each.bad.items()]
    return Round(commands, sum(sum(one.count) for one in established), sum(coming.count) + sum(leaving.count), bad)
