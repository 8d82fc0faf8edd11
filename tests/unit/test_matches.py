"""What is known of each kind of match and target: one example of each, tried in every language that it is known in.

A new kind is a line here.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from istio_init.core.errors import Unsupported
from istio_init.rules.kernel.modules import missing_of_nft, missing_part
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.matches.kinds import OF_PROTOCOL, MatchType, TargetType, Unknown
from istio_init.rules.model import Chain, Family, Match, MatchKind, OpaqueRule, Plan, Rule, Table, Target, TargetKind
from istio_init.rules.packet import Packet
from istio_init.rules.render.iptables import parse_rule, render_match, render_target
from istio_init.rules.render.nft import render_nft
from istio_init.rules.render.nft_listing import parse_listing
from istio_init.rules.walk import walk

OUT = Packet("10.1.2.3", 80, source="10.9.9.9", source_port=53, uid=5, gid=6, mark=7, connmark=8)
IN = OUT._replace(outbound=False)
TCP = Match(MatchKind.PROTOCOL, "tcp")
RETURN = Target(TargetKind.RETURN)


class Condition(NamedTuple):
    """A match in all languages.

    Attributes:
        text: as iptables-save prints it behind `-p tcp`.
        nft: as it stands in a rule of nft; empty where it has no words of its own.
        listed: as `nft -j` lists it: left side, operator, right side.
        holds, fails: packets for which it holds, and does not.
    """

    match: Match
    text: str
    nft: str
    listed: tuple[dict[str, Any], str, Any] | None
    holds: Packet
    fails: Packet | None


def field(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def ct(key: str) -> dict[str, Any]:
    return {"ct": {"key": key}}


NET = {"prefix": {"addr": "10.1.0.0", "len": 16}}
CONDITIONS = (
    Condition(
        Match(MatchKind.SOURCE, "10.1.0.0/16"),
        "-s 10.1.0.0/16",
        "ip saddr 10.1.0.0/16",
        (field("ip", "saddr"), "==", NET),
        OUT._replace(source="10.1.0.1"),
        OUT,
    ),
    Condition(
        Match(MatchKind.DESTINATION, "10.1.0.0/16"),
        "-d 10.1.0.0/16",
        "ip daddr 10.1.0.0/16",
        (field("ip", "daddr"), "==", NET),
        OUT,
        OUT._replace(destination="10.2.0.1"),
    ),
    Condition(Match(MatchKind.IN_INTERFACE, "eth+"), "-i eth+", 'iifname "eth*"', (meta("iifname"), "==", "eth*"), IN, OUT),
    Condition(
        Match(MatchKind.OUT_INTERFACE, "eth0"),
        "-o eth0",
        'oifname "eth0"',
        (meta("oifname"), "==", "eth0"),
        OUT,
        OUT._replace(interface="eth01"),
    ),
    Condition(TCP, "-p tcp", "meta l4proto tcp", (meta("l4proto"), "==", "tcp"), OUT, OUT._replace(protocol="udp")),
    Condition(
        Match(MatchKind.SOURCE_PORT, "53"),
        "-m tcp --sport 53",
        "tcp sport 53",
        (field("tcp", "sport"), "==", 53),
        OUT,
        OUT._replace(source_port=54),
    ),
    Condition(
        Match(MatchKind.DESTINATION_PORT, "80:90", negated=True),
        "-m tcp ! --dport 80:90",
        "tcp dport != 80-90",
        (field("tcp", "dport"), "!=", {"range": [80, 90]}),
        OUT._replace(port=91),
        OUT._replace(port=90),
    ),
    Condition(
        Match(MatchKind.DESTINATION_PORTS, "53,80:90", negated=True),
        "-m multiport ! --dports 53,80:90",
        "tcp dport != { 53, 80-90 }",
        (field("tcp", "dport"), "!=", {"set": [53, {"range": [80, 90]}]}),
        OUT._replace(port=54),
        OUT,
    ),
    Condition(Match(MatchKind.UID_OWNER, 5), "-m owner --uid-owner 5", "meta skuid 5", (meta("skuid"), "==", 5), OUT, IN),
    Condition(Match(MatchKind.GID_OWNER, 6), "-m owner --gid-owner 6", "meta skgid 6", (meta("skgid"), "==", 6), OUT, IN),
    Condition(Match(MatchKind.SOCKET), "-m socket", "", None, OUT._replace(has_socket=True), OUT),
    Condition(
        Match(MatchKind.CTSTATE, "NEW,RELATED"),
        "-m conntrack --ctstate NEW,RELATED",
        "ct state new,related",
        (ct("state"), "in", ["related", "new"]),
        OUT,
        OUT._replace(ctstate="ESTABLISHED"),
    ),
    Condition(
        Match(MatchKind.CTDIR, "ORIGINAL"),
        "-m conntrack --ctdir ORIGINAL",
        "ct direction original",
        (ct("direction"), "==", "original"),
        OUT,
        OUT._replace(ctdir="REPLY"),
    ),
    Condition(
        Match(MatchKind.MARK, 7), "-m mark --mark 0x7", "meta mark 0x7", (meta("mark"), "==", 7), OUT, OUT._replace(mark=0)
    ),
    Condition(
        Match(MatchKind.CONNMARK, 7, negated=True),
        "-m connmark ! --mark 0x7",
        "ct mark != 0x7",
        (ct("mark"), "!=", 7),
        OUT,
        OUT._replace(connmark=7),
    ),
    Condition(Match(MatchKind.COMMENT, "istio-init"), "-m comment --comment istio-init", "", None, OUT, None),
)


class Action(NamedTuple):
    """A target in all languages: as iptables-save prints it, as it stands in a rule of nft, and as `nft -j` lists it."""

    target: Target
    text: str
    nft: str
    listed: list[dict[str, Any]]


def mangle(key: dict[str, Any], value: object) -> dict[str, Any]:
    return {"mangle": {"key": key, "value": value}}


COPIED = "--nfmask 0xffffffff --ctmask 0xffffffff"
ACTIONS = (
    Action(
        Target(TargetKind.JUMP, chain="ISTIO_REDIRECT"),
        "-j ISTIO_REDIRECT",
        "jump mangle_ISTIO_REDIRECT",
        [{"jump": {"target": "mangle_ISTIO_REDIRECT"}}],
    ),
    Action(RETURN, "-j RETURN", "return", [{"return": None}]),
    Action(Target(TargetKind.ACCEPT), "-j ACCEPT", "accept", [{"accept": None}]),
    Action(
        Target(TargetKind.REJECT, reject_with="icmp-port-unreachable"),
        "-j REJECT --reject-with icmp-port-unreachable",
        "reject with icmp type port-unreachable",
        [{"reject": {"type": "icmp", "expr": "port-unreachable"}}],
    ),
    Action(
        Target(TargetKind.REDIRECT, port=15001),
        "-j REDIRECT --to-ports 15001",
        "redirect to :15001",
        [{"redirect": {"port": 15001}}],
    ),
    Action(
        Target(TargetKind.TPROXY, port=15006, mark=7),
        "-j TPROXY --on-port 15006 --tproxy-mark 0x7/0xffffffff",
        "tproxy to :15006 meta mark set 0x7 accept",
        [{"tproxy": {"port": 15006}}, mangle(meta("mark"), 7), {"accept": None}],
    ),
    Action(
        Target(TargetKind.MARK, mark=7), "-j MARK --set-xmark 0x7/0xffffffff", "meta mark set 0x7", [mangle(meta("mark"), 7)]
    ),
    Action(Target(TargetKind.DROP), "-j DROP", "drop", [{"drop": None}]),
    Action(
        Target(TargetKind.SAVE_MARK),
        f"-j CONNMARK --save-mark {COPIED}",
        "ct mark set meta mark",
        [mangle(ct("mark"), meta("mark"))],
    ),
    Action(
        Target(TargetKind.RESTORE_MARK),
        f"-j CONNMARK --restore-mark {COPIED}",
        "meta mark set ct mark",
        [mangle(meta("mark"), ct("mark"))],
    ),
    Action(Target(TargetKind.ZONE, zone=2), "-j CT --zone 2", "ct zone set 2", [mangle(ct("zone"), 2)]),
)
each_condition = pytest.mark.parametrize("one", CONDITIONS, ids=lambda one: str(one.match.kind))
each_action = pytest.mark.parametrize("one", ACTIONS, ids=lambda one: str(one.target.kind))


def plan_of(rule: Rule) -> Plan:
    return Plan("test", (Chain(Family.IPV4, Table.MANGLE, "ISTIO_INBOUND", (rule,)),))


def in_nft(rule: Rule) -> str:
    """Write a rule in nft, without counter and comment."""
    body = render_nft(plan_of(rule)).split("chain mangle_ISTIO_INBOUND {\n")[1]
    return body.splitlines()[0].strip().partition(" comment")[0].replace("counter ", "")


def from_listing(*rules: list[dict[str, Any]]) -> tuple[object, ...]:
    items: list[dict[str, Any]] = [{"chain": {"name": "mangle_ISTIO_INBOUND"}}]
    items += [{"rule": {"chain": "mangle_ISTIO_INBOUND", "expr": expressions}} for expressions in rules]
    return parse_listing(json.dumps({"nftables": items})).tables[Table.MANGLE].chains["ISTIO_INBOUND"]


def test_each_kind_is_known_in_the_order_of_iptables_save_and_has_an_example() -> None:
    assert [known.kind for known in MATCHES.values()] == list(MATCHES) == list(MatchKind)
    assert [one.match.kind for one in CONDITIONS] == list(MatchKind)
    assert {known.kind for known in TARGETS.values()} == set(TARGETS) == set(TargetKind)
    assert [one.target.kind for one in ACTIONS] == list(TargetKind)


def test_two_kinds_are_never_taken_for_each_other() -> None:
    assert len({(known.extension, known.option) for known in MATCHES.values()}) == len(MATCHES)
    keys = [key for known in MATCHES.values() for key in known.keys]
    assert len(keys) == len(set(keys))
    attributes = [known.attribute for known in MATCHES.values() if known.attribute]
    assert len(attributes) == len(set(attributes))


@each_condition
def test_a_condition_is_written_and_read_as_iptables_save_prints_it(one: Condition) -> None:
    assert render_match(one.match, "tcp") == one.text
    assert parse_rule(f"{one.text} -j RETURN") == Rule((one.match,), RETURN)


@each_condition
def test_a_condition_is_written_in_nft_and_read_from_its_listing(one: Condition) -> None:
    if not one.nft:
        return
    assert in_nft(Rule((TCP, one.match), RETURN)).removeprefix("meta l4proto tcp ") in (f"{one.nft} return", "return")
    assert one.listed
    left, operator, right = one.listed
    expression = {"match": {"op": operator, "left": left, "right": right}}
    (found,) = from_listing([expression, {"return": None}])
    assert isinstance(found, Rule)
    assert one.match in found.matches
    strange = (
        {"match": {"op": "<", "left": left, "right": right}},
        {"match": {"op": operator, "left": left, "right": "@set"}},
    )
    for expression in strange if one.match.kind not in (MatchKind.PROTOCOL, *INTERFACES) else strange[:1]:
        assert isinstance(from_listing([expression, {"return": None}])[0], OpaqueRule)


INTERFACES = (MatchKind.IN_INTERFACE, MatchKind.OUT_INTERFACE)


@each_condition
def test_a_condition_decides_on_a_packets_way(one: Condition) -> None:
    drop = Rule((one.match,), Target(TargetKind.DROP))
    for packet, is_dropped in ((one.holds, True), (one.fails, False)):
        if packet:
            hook = "OUTPUT" if packet.outbound else "PREROUTING"
            plan = Plan("test", (Chain(Family.IPV4, Table.MANGLE, hook, (drop,)),))
            assert (walk(plan, packet).outcome is not None) is is_dropped


@each_condition
def test_the_module_of_a_condition_is_named_where_it_is_missing(one: Condition) -> None:
    known = MATCHES[one.match.kind]
    if not known.extension:
        return
    name = "tcp" if known.extension == OF_PROTOCOL else known.extension
    script = f"*nat\n-A ISTIO_OUTPUT {one.text} -j RETURN\nCOMMIT\n"
    said = missing_part("iptables-restore: line 3 failed", script, Family.IPV4, legacy=True)
    assert said.startswith(f"the kernel seems to lack the match {name} (table nat); load the module xt_{name}")


@each_action
def test_a_target_is_written_and_read_as_iptables_save_prints_it(one: Action) -> None:
    assert render_target(one.target) == one.text
    assert parse_rule(one.text) == Rule((), one.target)
    assert isinstance(parse_rule(f"{one.text} --more 1"), OpaqueRule)


@each_action
def test_a_target_is_written_in_nft_and_read_from_its_listing(one: Action) -> None:
    assert in_nft(Rule((), one.target)) == one.nft
    drop: list[list[dict[str, Any]]] = [[{"drop": None}]] if TARGETS[one.target.kind].nft_drops else []
    assert from_listing(one.listed, *drop) == (Rule((), one.target),)
    assert isinstance(from_listing([*one.listed, {"log": None}], *drop)[0], OpaqueRule)


@each_action
def test_the_module_of_a_target_is_named_where_it_is_missing(one: Action) -> None:
    for family, prefix in ((Family.IPV4, "ipt"), (Family.IPV6, "ip6t")):
        script = f"*nat\n-A ISTIO_OUTPUT {one.text}\nCOMMIT\n"
        said = missing_part("iptables-restore: line 3 failed", script, family, legacy=True)
        name = one.text.split()[1]
        if one.target.kind in (TargetKind.JUMP, TargetKind.RETURN, TargetKind.ACCEPT, TargetKind.DROP):
            assert said == ""
        else:
            module = f"{prefix}_REJECT" if name == "REJECT" else f"xt_{name}"
            assert said.endswith(f"the target {name} (table nat); load the module {module} on the node (modprobe {module})")
    message = "/dev/stdin:1:1-9: Error: Could not process rule: No such file or directory"
    for word, module in TARGETS[one.target.kind].nft_modules:
        assert f"the statement {word} of nftables" in missing_of_nft(message, one.nft)
        assert f"load the module {module} " in missing_of_nft(message, one.nft)


@pytest.mark.parametrize("element", ["@set", {"prefix": {"addr": 1, "len": 8}}, None, {"range": ["a", 1]}, [1]])
def test_an_element_that_is_no_value_of_the_kind_is_unknown(element: object) -> None:
    for kind in (MatchKind.SOURCE, MatchKind.DESTINATION_PORT, MatchKind.UID_OWNER, MatchKind.MARK, MatchKind.COMMENT):
        with pytest.raises(Unknown):
            list(MATCHES[kind].read_element(element))


@pytest.mark.parametrize(
    "left", [{"map": {"key": meta("mark"), "data": "@m"}}, {"&": [meta("mark"), 1]}, meta("cpu"), "x", {}]
)
def test_a_condition_on_something_else_is_kept_as_it_is(left: object) -> None:
    found = from_listing([{"match": {"op": "==", "left": left, "right": 1}}, {"return": None}])
    assert isinstance(found[0], OpaqueRule)


def test_what_a_new_kind_has_to_say_itself() -> None:
    match, target = MatchType(), TargetType()
    target.kind = TargetKind.MARK
    with pytest.raises(NotImplementedError):
        match.holds(OUT, 1)
    with pytest.raises(NotImplementedError):
        match.guard([1])
    with pytest.raises(NotImplementedError):
        target.read([], Table.NAT)
    with pytest.raises(Unsupported, match="MARK in table nat"):
        target.nft_text(Target(TargetKind.MARK), Table.NAT)
