"""Established connections, inbound and outbound, while another rule set, layout or mode takes over."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from istio_init.rules.model import TPROXY_MARK
from tests.netns.changes import ENDING, MODES, NUMBER, PAIRS, WAYS, change_rules
from tests.netns.echoes import echoes

if TYPE_CHECKING:
    from tests.netns.namespaces import Pod

COUNT, SEED, OPENINGS = 12, 20261126, 40
CHANGES = [(one, other) for one, other in product(MODES, MODES) if (one, other) not in ENDING]


def dead_after(pod: Pod, mark: int, *changes: tuple[str, ...]) -> list[str]:
    """Apply the first plan, establish connections, apply the others, and say what became of those that did not live on."""
    pod.inside.istio_init(*changes[0])
    with echoes(pod, mark, NUMBER) as connections:
        for change in changes[1:]:
            pod.inside.istio_init(*change)
        for each in connections:
            each.await_round()
    assert [each.escaped for each in connections] == [0, 0]
    return [line for each in connections for line in each.died]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_connections_live_on_when_another_rule_set_takes_over(pod: Pod, first: str, second: str) -> None:
    one, other = ((*WAYS[way], *MODES["tproxy"]) for way in (first, second))
    assert dead_after(pod, TPROXY_MARK, one, other, one) == []


@pytest.mark.parametrize("way", WAYS)
def test_connections_live_on_when_rules_are_replaced(pod: Pod, way: str) -> None:
    one = (*WAYS[way], *MODES["tproxy"])
    assert dead_after(pod, TPROXY_MARK, one, *((*one, "-x", "10.1.0.0/16"), one) * 4) == []


@pytest.mark.parametrize(("one", "other"), CHANGES, ids=["-to-".join(change) for change in CHANGES])
def test_connections_live_on_when_another_layout_or_mode_takes_over(pod: Pod, one: str, other: str) -> None:
    first, second = PAIRS[CHANGES.index((one, other)) % len(PAIRS)]
    assert dead_after(pod, 0, (*WAYS[first], *MODES[one]), (*WAYS[second], *MODES[other])) == []


@pytest.mark.parametrize(
    ("one", "other", "mark", "which"),
    [
        ("tproxy", MODES["redirect"], TPROXY_MARK, "of the proxy to its app that come from clients' own addresses"),
        ("tproxy", MODES["tproxy-1.0"], TPROXY_MARK, "of the proxy to its app that come from clients' own addresses"),
        ("tproxy", ("clean",), TPROXY_MARK, "of the proxy to its app that come from clients' own addresses"),
        ("redirect", MODES["tproxy-1.0"], 0, "of clients that were redirected to the proxy"),
        ("redirect-1.0", MODES["tproxy-1.0"], 0, "of clients that were redirected to the proxy"),
    ],
    ids=["to-redirect", "to-1.0", "to-nothing", "from-redirect", "from-redirect-1.0"],
)
def test_what_ends_is_counted_and_told_beforehand(pod: Pod, one: str, other: tuple[str, ...], mark: int, which: str) -> None:
    pod.inside.istio_init(*MODES[one])
    with echoes(pod, mark, NUMBER) as (inbound, _):
        warning, *_ = pod.inside.istio_init(*other).stderr.splitlines()
        inbound.await_round()
    assert len(inbound.died) == NUMBER
    assert f"warning: {NUMBER} established ipv4 connections end: those {which}" in warning


def test_where_nothing_ends_nothing_is_told(pod: Pod) -> None:
    pod.inside.istio_init(*MODES["tproxy"])
    assert "warning" not in pod.inside.istio_init(*MODES["redirect"]).stderr


def test_during_random_changes_none_dies_and_none_escapes(pod: Pod) -> None:
    rounds = list(change_rules(pod, COUNT, SEED, OPENINGS))
    assert [line for one in rounds for line in one.bad] == []
    assert sum(one.openings for one in rounds) >= COUNT * OPENINGS
