"""Rules in the language of nft: how they are written, joined into sets, and read back from a listing."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.core.errors import Unsupported
from istio_init.rules.changes import TableChange, compare, desired
from istio_init.rules.layout import CURRENT
from istio_init.rules.layouts import build_plan, reasons
from istio_init.rules.matches import MATCHES
from istio_init.rules.model import (
    Chain,
    Family,
    Match,
    MatchKind,
    OpaqueRule,
    Plan,
    Reason,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
)
from istio_init.rules.render import render
from istio_init.rules.render.nft import canonical_tables, declaration, hook, render_gains, render_nft, render_tables
from istio_init.rules.render.nft_listing import parse_listing
from istio_init.rules.render.nft_sets import canonical, join
from istio_init.rules.settings import Settings
from istio_init.rules.walk import Packet, walk
from tests.sweeps import sweep
from tests.unit.strategies import addresses, cidrs, ipv6_addresses, ipv6_cidrs, port_ranges, ports, valid_settings

TCP = Match(MatchKind.PROTOCOL, "tcp")
RETURN = Target(TargetKind.RETURN)
CAPTURE = Target(TargetKind.JUMP, chain="ISTIO_REDIRECT")
COMMENT = re.compile(r' comment "([^"]*)"$')


EXCLUDED = reasons.OUTBOUND_CIDR_EXCLUDED


def because(sentence: str) -> Reason:
    return Reason("because", sentence)


def to(cidr: str) -> Match:
    return Match(MatchKind.DESTINATION, cidr)


def port(value: str) -> Match:
    return Match(MatchKind.DESTINATION_PORT, value)


def uid(value: int, *, negated: bool = False) -> Match:
    return Match(MatchKind.UID_OWNER, value, negated)


def plan_of(*rules: Rule, table: Table = Table.NAT, chain: str = "ISTIO_OUTPUT", family: Family = Family.IPV4) -> Plan:
    return Plan("test", (Chain(family, table, chain, rules),))


def lines_of(*rules: Rule, table: Table = Table.NAT, chain: str = "ISTIO_OUTPUT", family: Family = Family.IPV4) -> list[str]:
    """Write rules, and give the lines of their chain without counters and reasons."""
    text = render_nft(plan_of(*rules, table=table, chain=chain, family=family))
    body = text.split(f"chain {table}_{chain} {{\n")[1].split("\t}")[0]
    return [COMMENT.sub("", line.strip()).replace("counter ", "") for line in body.splitlines() if "counter" in line]


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (to("10.0.0.0/8"), "ip daddr 10.0.0.0/8"),
        (Match(MatchKind.DESTINATION, "127.0.0.1/32", negated=True), "ip daddr != 127.0.0.1/32"),
        (Match(MatchKind.SOURCE, "10.0.0.0/8"), "ip saddr 10.0.0.0/8"),
        (Match(MatchKind.IN_INTERFACE, "lo"), 'iifname "lo"'),
        (Match(MatchKind.OUT_INTERFACE, "eth+"), 'oifname "eth*"'),
        (TCP, "meta l4proto tcp"),
        (uid(1337), "meta skuid 1337"),
        (Match(MatchKind.GID_OWNER, 4294967294), "meta skgid 4294967294"),
        (Match(MatchKind.MARK, 1338, negated=True), "meta mark != 0x53a"),
        (Match(MatchKind.CONNMARK, 1337), "ct mark 0x539"),
        (Match(MatchKind.CTSTATE, "RELATED,ESTABLISHED"), "ct state related,established"),
        (Match(MatchKind.COMMENT, "istio-init"), ""),
    ],
)
def test_a_condition_is_written(match: Match, words: str) -> None:
    assert lines_of(Rule((match,), RETURN)) == [f"{words} return".lstrip()]


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (port("80"), "tcp dport 80"),
        (port("8000:8100"), "tcp dport 8000-8100"),
        (Match(MatchKind.DESTINATION_PORT, "53", negated=True), "tcp dport != 53"),
        (Match(MatchKind.SOURCE_PORT, "53"), "tcp sport 53"),
        (Match(MatchKind.DESTINATION_PORTS, "53,15008", negated=True), "tcp dport != { 53, 15008 }"),
    ],
)
def test_a_port_tells_the_protocol(match: Match, words: str) -> None:
    assert lines_of(Rule((TCP, match), RETURN)) == [f"{words} return"]


def test_a_target_of_ipv6_is_written() -> None:
    target = Target(TargetKind.REJECT, reject_with="icmp6-port-unreachable")
    assert lines_of(Rule((TCP,), target)) == ["meta l4proto tcp reject with icmpv6 type port-unreachable"]


def test_tproxy_drops_what_no_proxy_listens_for() -> None:
    target = Target(TargetKind.TPROXY, port=15006, mark=1337)
    assert lines_of(Rule((TCP,), target), table=Table.MANGLE, chain="ISTIO_TPROXY", family=Family.IPV6) == [
        "meta l4proto tcp tproxy to :15006 meta mark set 0x539 accept",
        "meta l4proto tcp drop",
    ]


def test_each_family_has_its_words() -> None:
    assert lines_of(Rule((to("fd00::/8"),), RETURN), family=Family.IPV6) == ["ip6 daddr fd00::/8 return"]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (Rule((Match(MatchKind.IN_INTERFACE, 'a" drop'),), RETURN), "interface"),
        (Rule((Match(MatchKind.IN_INTERFACE, "a*"),), RETURN), "interface"),
        (Rule((Match(MatchKind.SOCKET, "", negated=True),), RETURN), "negated socket"),
        (Rule((Match(MatchKind.CTSTATE, "NEW,INVALID", negated=True),), RETURN), "negated ctstate"),
        (Rule((), Target(TargetKind.REJECT, reject_with="tcp-reset")), "REJECT tcp-reset"),
        (Rule((uid(1, negated=True),), Target(TargetKind.ACCEPT)), "ACCEPT with such conditions"),
    ],
)
def test_what_nft_has_no_words_for_is_refused(rule: Rule, told: str) -> None:
    with pytest.raises(Unsupported, match=told):
        render_nft(plan_of(rule))


def test_a_rule_of_others_is_not_written_again() -> None:
    with pytest.raises(Unsupported, match="not ours"):
        canonical_tables({Table.NAT: TableState({"ISTIO_OUTPUT": (OpaqueRule("-j LOG"),)})})


BASE_CHAINS = {
    (Table.RAW, "PREROUTING"): "type filter hook prerouting priority -300; policy accept;",
    (Table.MANGLE, "PREROUTING"): "type filter hook prerouting priority -150; policy accept;",
    (Table.MANGLE, "OUTPUT"): "type route hook output priority -150; policy accept;",
    (Table.NAT, "OUTPUT"): "type nat hook output priority -100; policy accept;",
    (Table.FILTER, "INPUT"): "type filter hook input priority 0; policy accept;",
}


@pytest.mark.parametrize(("table", "chain"), BASE_CHAINS)
def test_a_built_in_chain_is_a_base_chain_at_its_place(table: Table, chain: str) -> None:
    text = render_nft(plan_of(Rule((), CAPTURE, because("because")), table=table, chain=chain))
    assert text == (
        "# test\nadd table ip istio-init\ndelete table ip istio-init\ntable ip istio-init {\n"
        f"\tchain {table}_{chain} {{\n\t\t{BASE_CHAINS[table, chain]}\n"
        f'\t\tcounter jump {table}_ISTIO_REDIRECT comment "because"\n\t}}\n}}\n'
    )


def test_what_belongs_at_the_head_comes_first() -> None:
    chain = Chain(Family.IPV4, Table.NAT, "PREROUTING", (Rule((), CAPTURE),), (Rule((TCP,), RETURN),))
    rules = [line.strip() for line in render_nft(Plan("test", (chain,))).splitlines() if "counter" in line]
    assert [COMMENT.sub("", rule) for rule in rules] == [
        "meta l4proto tcp counter return",
        "counter jump nat_ISTIO_REDIRECT",
    ]


def test_a_family_that_is_to_have_nothing_loses_its_table() -> None:
    assert render_tables({Family.IPV6: []}) == "add table ip6 istio-init\ndelete table ip6 istio-init\n"


def test_where_there_is_no_table_none_is_deleted() -> None:
    changes = {family: compare(desired(plan_of(Rule((), RETURN)), Family.IPV4), {}) for family in Family}
    text = render_tables(changes, absent={Family.IPV4})
    assert "create table ip istio-init\ntable ip istio-init {" in text
    assert "delete table ip6 istio-init" in text
    assert "delete table ip istio-init" not in text


def test_chains_are_listed_with_the_declaration_of_those_that_a_plan_has_like_that() -> None:
    kind, point, priority = hook(Table.NAT, "OUTPUT")
    first = {"type": kind, "hook": "prerouting", "prio": priority - 1, "policy": "accept"}
    base = {"type": kind, "hook": point, "prio": priority, "policy": "accept"}
    chains = [
        {"name": "nat_OUTPUT"} | base,
        {"name": "nat_PREROUTING"} | base,  # the hook is another's
        {"name": "nat_ISTIO_OUTPUT"},
        {"name": "of_nobody"} | base,
    ]
    items: list[dict[str, Any]] = [{"chain": chain} for chain in chains]
    usual = "type nat hook output priority -100; policy accept;"
    expected = {"nat_OUTPUT": usual, "nat_PREROUTING": "", "nat_ISTIO_OUTPUT": "", "of_nobody": ""}
    assert parse_listing(json.dumps({"nftables": items})).chains == expected
    assert parse_listing(json.dumps({"nftables": [*items, {"set": {"name": "theirs"}}]})).chains == {}
    at_head = parse_listing(json.dumps({"nftables": [{"chain": {"name": "nat_PREROUTING"} | first}]})).chains
    assert at_head == {"nat_PREROUTING": "type nat hook prerouting priority -101; policy accept;"}


def test_a_base_chain_that_stays_is_filled_anew_and_all_other_chains_go() -> None:
    changes = {Family.IPV4: [TableChange(Table.NAT, {}, added_jumps=(("OUTPUT", Rule((TCP,), RETURN)),))]}
    bases = {f"nat_{chain}": declaration(hook(Table.NAT, chain)) for chain in ("OUTPUT", "PREROUTING")}
    standing = {**bases, "nat_ISTIO_OUTPUT": "", "mangle_X": ""}
    text = render_tables(changes, standing={Family.IPV4: standing})
    emptied, _, filled = text.partition("table ip istio-init {")
    assert emptied.splitlines() == [
        *(f"flush chain ip istio-init {name}" for name in standing),
        *(f"delete chain ip istio-init {name}" for name in ("nat_PREROUTING", "nat_ISTIO_OUTPUT", "mangle_X")),
    ]
    assert "table ip istio-init {" + filled in render_tables(changes)


def test_a_base_chain_of_another_priority_does_not_stay() -> None:
    rule = Rule((TCP, Match(MatchKind.COMMENT, "istio-init-first")), RETURN)
    changes = {Family.IPV4: [TableChange(Table.NAT, {}, inserted_jumps=(("OUTPUT", rule),))]}
    texts = [
        render_tables(
            changes, standing={Family.IPV4: {"nat_OUTPUT": declaration(hook(Table.NAT, "OUTPUT", is_first=first))}}
        )
        for first in (False, True)
    ]
    assert ["delete chain ip istio-init nat_OUTPUT" in text for text in texts] == [True, False]


def test_what_one_table_gains_comes_before_what_another_loses() -> None:
    changes = {
        Family.IPV4: [
            TableChange(Table.MANGLE, {}, added_jumps=(("PREROUTING", Rule((TCP,), RETURN)),)),
            TableChange(Table.NAT, {}, added_jumps=(("OUTPUT", Rule((TCP,), RETURN)),)),
        ]
    }
    redirect = {"nat_PREROUTING": "type nat", "nat_OUTPUT": "type nat"}
    tproxy = {"mangle_PREROUTING": "type filter", "nat_OUTPUT": "type nat"}
    gains = render_gains(changes, {Family.IPV4: redirect})
    assert gains.startswith("table ip istio-init {\n\tchain mangle_PREROUTING {")
    assert "nat" not in gains
    assert render_gains(changes, {Family.IPV4: tproxy}) == ""
    assert render_gains(changes, {}) == ""


def test_an_owner_that_a_packet_must_not_have_is_looked_for_in_a_chain_of_its_own() -> None:
    rule = Rule((Match(MatchKind.OUT_INTERFACE, "lo"), uid(7, negated=True), uid(5, negated=True)), RETURN, because("why"))
    text = render_nft(plan_of(rule))
    assert 'oifname "lo" counter jump nat_ISTIO_OUTPUT_if_1 comment "why"' in text
    guard = text.split("chain nat_ISTIO_OUTPUT_if_1 {\n")[1]
    assert [COMMENT.sub("", line.strip()) for line in guard.splitlines()[:2]] == [
        "meta skuid { 5, 7 } counter return",
        "counter accept",  # `return` would lead back into the chain that is to end
    ]


def test_the_same_guard_is_written_once() -> None:
    socket = Match(MatchKind.SOCKET)
    rules = [Rule((TCP, port(str(number)), socket), CAPTURE, because("known")) for number in (1, 3)]
    text = render_nft(plan_of(rules[0], Rule((TCP,), RETURN), rules[1]))
    assert text.count("jump nat_ISTIO_OUTPUT_if_1 ") == 2
    assert text.count("chain nat_ISTIO_OUTPUT_if_") == 1


@pytest.mark.parametrize("others", [(), (Rule((TCP,), RETURN),)], ids=["jump-in-another-chain", "rule-behind-the-jump"])
def test_a_guard_does_not_accept_what_would_go_on(others: tuple[Rule, ...]) -> None:
    leave = Rule((uid(1, negated=True),), RETURN)
    to_it = Rule((), Target(TargetKind.JUMP, chain="ISTIO_OUTPUT"))
    caller = "OUTPUT" if others else "ISTIO_INBOUND"
    chains = (Chain(Family.IPV4, Table.NAT, caller, (to_it, *others)), *plan_of(leave).chains)
    with pytest.raises(Unsupported, match="RETURN with such conditions in chain nat_ISTIO_OUTPUT"):
        render_nft(Plan("test", chains))
    assert "accept" in render_nft(Plan("test", (Chain(Family.IPV4, Table.NAT, "OUTPUT", (to_it,)), *plan_of(leave).chains)))


def excluded(*values: str) -> list[Rule]:
    return [Rule((to(cidr),), RETURN, EXCLUDED.of(cidr)) for cidr in values]


def test_consecutive_rules_that_differ_in_a_value_become_one_with_a_set() -> None:
    rules = [*excluded("10.2.0.0/16", "10.1.0.0/24"), Rule((TCP, port("80")), RETURN), *excluded("10.9.0.0/16")]
    assert lines_of(*rules) == [
        "ip daddr { 10.1.0.0/24, 10.2.0.0/16 } return",
        "tcp dport 80 return",
        "ip daddr 10.9.0.0/16 return",
    ]


def test_ten_thousand_destinations_are_one_look_up() -> None:
    rules = excluded(*(f"10.{number >> 8}.{number & 255}.0/25" for number in range(10_000)))
    text = render_nft(plan_of(*rules))
    assert text.count("ip daddr") == 1
    assert text.count("/25") == 10_000
    assert 'comment "10,000 destinations are excluded (-x)"' in text


@pytest.mark.parametrize(
    "other",
    [
        Rule((to("10.2.0.0/16"),), CAPTURE, EXCLUDED.of("10.2.0.0/16")),
        Rule((to("10.2.0.0/16"),), RETURN, reasons.LOCALHOST),
        Rule((to("10.2.0.0/16"),), RETURN, EXCLUDED._replace(id="another").of("10.2.0.0/16")),
        Rule((to("10.2.0.0/16"),), RETURN, EXCLUDED._replace(template="{value}").of("10.2.0.0/16")),
        Rule((to("10.2.0.0/16"),), RETURN, EXCLUDED.of("10.3.0.0/16")),
        Rule((to("10.2.0.0/16"), TCP), RETURN, EXCLUDED.of("10.2.0.0/16")),
        Rule((Match(MatchKind.DESTINATION, "10.2.0.0/16", negated=True),), RETURN, EXCLUDED.of("10.2.0.0/16")),
        Rule((Match(MatchKind.SOURCE, "10.2.0.0/16"),), RETURN, EXCLUDED.of("10.2.0.0/16")),
    ],
    ids=["target", "reason", "id", "template", "value", "condition", "negation", "kind"],
)
def test_rules_that_differ_in_more_stay_apart(other: Rule) -> None:
    rules = [*excluded("10.1.0.0/16"), other]
    for order in (rules, rules[::-1]):
        assert [joined.rule for joined in join(order)] == order


def test_a_rule_is_joined_with_neighbours_in_one_place_only() -> None:
    rules = [
        Rule((to(cidr), uid(number)), RETURN) for cidr, number in (("1.0.0.0/8", 1), ("2.0.0.0/8", 1), ("2.0.0.0/8", 2))
    ]
    assert [(joined.place, joined.values) for joined in join(rules)] == [(0, ("1.0.0.0/8", "2.0.0.0/8")), (None, ())]


@pytest.mark.parametrize(
    ("kind", "values", "reason", "sentence"),
    [
        (
            MatchKind.DESTINATION_PORT,
            ("80", "90:95"),
            reasons.OUTBOUND_PORT_CAPTURED,
            "destination ports 80, 90:95 are captured (-q)",
        ),
        (MatchKind.UID_OWNER, (0, 1337), reasons.PROXY_UID, "the proxy's own traffic (uids 0, 1337) must not loop"),
        (MatchKind.GID_OWNER, (5, 6), Reason("a", "for {value}"), "for 5, 6"),
        (MatchKind.SOURCE, ("10.0.0.1/32", "10.0.0.9/32"), Reason("a", "replies are let in"), "replies are let in"),
    ],
)
def test_a_reason_is_that_of_all_values(
    kind: MatchKind, values: tuple[int | str, ...], reason: Reason, sentence: str
) -> None:
    (joined,) = join(Rule((TCP, Match(kind, value)), RETURN, _told(reason, value)) for value in values)
    assert joined.rule.reason.id == reason.id
    assert joined.rule.why == sentence


def _told(reason: Reason, value: int | str) -> Reason:
    return reason.of(value) if "{value}" in reason.template else reason


def test_rules_that_tell_the_same_value_of_something_else_are_joined() -> None:
    reason = reasons.VIRTUAL_CAPTURED.of("vm0")
    (joined,) = join(Rule((to(cidr),), CAPTURE, reason) for cidr in ("10.1.0.0/16", "10.3.0.0/16"))
    assert joined.rule.reason == reason


def test_values_that_are_too_many_to_name_are_counted() -> None:
    for reason, sentence in (
        (reasons.INBOUND_PORT_EXCLUDED, "1,000 ports are excluded (-d)"),
        (Reason("a", "({value})", plural="({ports}) must not loop"), "(1,000 ports) must not loop"),
    ):
        (joined,) = join(Rule((TCP, port(str(n))), RETURN, reason.of(str(n))) for n in range(1000, 3000, 2))
        assert joined.rule.why == sentence


def test_a_reason_that_is_too_long_is_cut_at_a_word() -> None:
    for why in ("word " * 40, "ü" * 100, "a" * 129):
        text = render_nft(plan_of(Rule((), RETURN, because(why))))
        (comment,) = re.findall(r'comment "(.*)"', text)
        assert comment.endswith("…")
        assert 100 < len(comment.encode()) <= 128
        assert why.startswith(comment[:-1])
        assert " " not in why or why[len(comment) - 1] == " "
    assert f'comment "{"a" * 128}"' in render_nft(plan_of(Rule((), RETURN, because("a" * 128))))
    assert "comment \"it's 'so'\"" in render_nft(plan_of(Rule((), RETURN, because('it\'s "so"'))))


@given(settings=valid_settings)
def test_every_rule_has_a_counter_and_a_reason_that_fits(settings: Settings) -> None:
    plan = build_plan(settings)
    rules = [line for line in render(plan, "nft").splitlines() if line.startswith("\t\t") and "policy" not in line]
    assert bool(rules) is bool(plan.chains)
    for line in rules:
        assert " counter " in f" {line.strip()}"
        (comment,) = COMMENT.findall(line)
        assert 0 < len(comment.encode()) <= 128


@given(settings=valid_settings)
def test_every_plan_is_written_with_each_jump_leading_to_a_chain(settings: Settings) -> None:
    text = render(build_plan(settings), "nft")
    for table in text.split("delete table ")[1:]:
        chains = set(re.findall(r"^\tchain (\w+) ", table, re.MULTILINE))
        assert set(re.findall(r" jump (\w+) comment", table)) <= chains


def some_packets() -> st.SearchStrategy[Packet]:
    numbers = st.sampled_from((0, 1, 2, 1337, 4294967294))
    return st.builds(
        Packet,
        destination=addresses | ipv6_addresses,
        source=st.just("10.0.0.1"),
        port=ports,
        protocol=st.sampled_from(("tcp", "udp")),
        outbound=st.booleans(),
        interface=st.sampled_from(("lo", "eth0")),
        uid=numbers,
        gid=numbers,
    )


@given(settings=valid_settings, packet=some_packets())
def test_joining_rules_changes_nothing_for_any_packet(settings: Settings, packet: Packet) -> None:
    packet = packet._replace(source="fd00::1" if ":" in packet.destination else packet.source)
    plan = build_plan(settings)
    joined = plan._replace(
        chains=tuple(
            chain._replace(rules=canonical(chain.rules), inserted=canonical(chain.inserted)) for chain in plan.chains
        ),
    )
    assert walk(joined, packet).outcome == walk(plan, packet).outcome


@given(values=st.lists(cidrs | addresses, min_size=1, max_size=8), probe=addresses)
def test_tidy_cidrs_hold_the_same_addresses(values: list[str], probe: str) -> None:
    found = [ip_network(str(cidr)) for cidr in MATCHES[MatchKind.DESTINATION].tidy(_canonical(values))]
    wanted = [ip_network(cidr, strict=False) for cidr in values]
    for address in (ip_address(probe), *(one for net in wanted for one in (net[0], net[-1]))):
        assert any(address in net for net in found) == any(address in net for net in wanted)
    assert found == sorted(found)
    assert not any(one.overlaps(other) for one in found for other in found if one is not other)


@given(values=st.lists(ipv6_cidrs, min_size=1, max_size=5))
def test_tidy_cidrs_of_ipv6_hold_the_same_addresses(values: list[str]) -> None:
    found = [ip_network(str(cidr)) for cidr in MATCHES[MatchKind.SOURCE].tidy(_canonical(values))]
    wanted = [ip_network(cidr, strict=False) for cidr in values]
    for address in (one for net in wanted for one in (net[0], net[-1], net[0] - 1 if int(net[0]) else net[0])):
        assert any(address in net for net in found) == any(address in net for net in wanted)


def _canonical(values: list[str]) -> list[str]:
    return [str(ip_network(cidr, strict=False)) for cidr in values]


@given(values=st.lists(ports.map(str) | port_ranges.map(lambda text: text.replace("-", ":")), min_size=1, max_size=8))
def test_tidy_ports_hold_the_same_ports(values: list[str]) -> None:
    def held(texts: tuple[int | str, ...] | list[str]) -> set[int]:
        pairs = [str(text).partition(":") for text in texts]
        return {number for first, _, last in pairs for number in range(int(first), int(last or first) + 1)}

    assert held(MATCHES[MatchKind.DESTINATION_PORT].tidy(values)) == held(values)


def test_neighbours_are_joined_to_the_fewest() -> None:
    assert MATCHES[MatchKind.DESTINATION].tidy(["10.0.1.0/24", "10.0.0.0/24", "10.0.2.0/24", "10.0.0.7/32"]) == (
        "10.0.0.0/23",
        "10.0.2.0/24",
    )
    assert MATCHES[MatchKind.DESTINATION].tidy(["0.0.0.0/1", "128.0.0.0/1"]) == ("0.0.0.0/0",)
    assert MATCHES[MatchKind.SOURCE].tidy(["fd00::/9", "fd80::/9"]) == ("fd00::/8",)
    assert MATCHES[MatchKind.DESTINATION_PORT].tidy(["82", "80", "81", "90:95", "93:99"]) == ("80:82", "90:99")
    assert MATCHES[MatchKind.UID_OWNER].tidy([10, 2, 10]) == (2, 10)


# From here on: a listing, and what it is read as. What nft prints of rules that were loaded is tried in tests/netns.


Expressions = list[dict[str, Any]]


def listing(*rules: Expressions, **more: list[Expressions]) -> str:
    """Write a listing of one chain with these rules, and of more chains."""
    items: list[dict[str, Any]] = [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "ip", "name": "istio-init"}}]
    for name, content in {"nat_ISTIO_OUTPUT": list(rules), **more}.items():
        items.append({"chain": {"family": "ip", "table": "istio-init", "name": name}})
        items += [{"rule": {"chain": name, "expr": expressions}} for expressions in content]
    return json.dumps({"nftables": items})


def read(*rules: Expressions, **more: list[Expressions]) -> tuple[object, ...]:
    return parse_listing(listing(*rules, **more)).tables[Table.NAT].chains["ISTIO_OUTPUT"]


def match(left: dict[str, Any], right: object, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
SKUID = {"meta": {"key": "skuid"}}
COUNTER = {"counter": {"packets": 3, "bytes": 180}}
LEAVE = {"return": None}
DROP = {"drop": None}
TPROXY: Expressions = [
    {"tproxy": {"port": 15006}},
    {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1337}},
    {"accept": None},
]


def test_a_set_is_read_as_a_rule_for_each_value() -> None:
    elements = [{"prefix": {"addr": "10.1.0.0", "len": 16}}, "10.2.0.1", {"range": ["10.3.0.0", "10.3.2.255"]}]
    found = read([match(DADDR, {"set": elements}), COUNTER, LEAVE])
    cidrs = ("10.1.0.0/16", "10.2.0.1/32", "10.3.0.0/23", "10.3.2.0/24")
    assert found == tuple(Rule((to(cidr),), RETURN) for cidr in cidrs)


def test_a_comment_is_kept_as_the_reason_of_each_rule_and_is_written_again() -> None:
    rule = [match(DPORT, {"set": [80, 90]}), COUNTER, LEAVE]
    body = {"chain": "nat_ISTIO_OUTPUT", "comment": "ports 80, 90 {value} are excluded", "expr": rule}
    items = [{"chain": {"name": "nat_ISTIO_OUTPUT"}}, {"rule": body}]
    rules = parse_listing(json.dumps({"nftables": items})).tables[Table.NAT].chains["ISTIO_OUTPUT"]
    assert [rule.why for rule in rules if isinstance(rule, Rule)] == [body["comment"]] * 2
    (joined,) = join(rule for rule in rules if isinstance(rule, Rule))
    assert (joined.values, joined.rule.why) == (("80", "90"), body["comment"])


def test_ports_and_their_protocol_are_read() -> None:
    found = read([match(DPORT, {"set": [80, {"range": [90, 95]}]}), COUNTER, LEAVE])
    assert found == (Rule((TCP, port("80")), RETURN), Rule((TCP, port("90:95")), RETURN))
    (other,) = read([match(DPORT, {"set": [53, 15008]}, "!="), COUNTER, LEAVE])
    assert other == Rule((TCP, Match(MatchKind.DESTINATION_PORTS, "53,15008", negated=True)), RETURN)


UNKNOWN = {
    "statement": [COUNTER, {"log": {"prefix": "x"}}, LEAVE],
    "condition behind it": [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}, match(SKUID, 1)],
    "no verdict": [match(SKUID, 1), COUNTER],
    "field": [match({"payload": {"protocol": "ip", "field": "ttl"}}, 1), LEAVE],
    "operator": [match(DPORT, 80, ">"), LEAVE],
    "two sets": [match(DPORT, {"set": [1, 3]}), match(SKUID, {"set": [1, 3]}), LEAVE],
    "negated set": [match(SKUID, {"set": [1, 3]}, "!="), LEAVE],
    "negated range": [match(DADDR, {"range": ["10.3.0.0", "10.3.2.255"]}, "!="), LEAVE],
    "named set": [match(DADDR, "@some"), LEAVE],
    "state": [match({"ct": {"key": "state"}}, "snat", "in"), LEAVE],
    "jump to another table": [{"jump": {"target": "mangle_ISTIO_DIVERT"}}],
    "goto": [{"goto": {"target": "nat_ISTIO_REDIRECT"}}],
    "redirect with flags": [match({"meta": {"key": "l4proto"}}, "tcp"), {"redirect": {"port": 1, "flags": "random"}}],
    "reject": [{"reject": {"type": "tcp reset"}}],
    "mark with a mask": [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [{"meta": {"key": "mark"}}, 1]}}}],
    "set of nothing": [match(DPORT, {"set": []}), LEAVE],
    "guard that is none": [{"jump": {"target": "nat_ISTIO_OUTPUT_if_1"}}],
}


@sweep("expressions", UNKNOWN.values(), ids=list(UNKNOWN))
def test_what_the_model_has_no_words_for_is_kept_as_it_is(expressions: Expressions) -> None:
    found = read(expressions)
    assert len(found) == 1
    assert isinstance(found[0], OpaqueRule)


OWNED = [match(SKUID, {"set": [5, 7]}), COUNTER, LEAVE]
TO_GUARD = [match({"meta": {"key": "oifname"}}, "lo"), COUNTER, {"jump": {"target": "nat_ISTIO_OUTPUT_if_1"}}]
SOCKET_OF_ANY = [match({"socket": {"key": "wildcard"}}, 1), COUNTER, LEAVE]
SOCKET = match({"socket": {"key": "transparent"}}, {"set": [0, 1]})


def test_a_guard_is_read_as_the_conditions_that_it_stands_for() -> None:
    (found,) = read(TO_GUARD, nat_ISTIO_OUTPUT_if_1=[OWNED, [COUNTER, {"accept": None}]])
    assert found == Rule((Match(MatchKind.OUT_INTERFACE, "lo"), uid(5, negated=True), uid(7, negated=True)), RETURN)
    jump = {"jump": {"target": "nat_ISTIO_REDIRECT"}}
    (found,) = read(TO_GUARD, nat_ISTIO_OUTPUT_if_1=[SOCKET_OF_ANY, [SOCKET, COUNTER, jump]])
    assert found == Rule((Match(MatchKind.OUT_INTERFACE, "lo"), Match(MatchKind.SOCKET)), CAPTURE)


@pytest.mark.parametrize(
    "guard",
    [
        [],
        [[LEAVE], [COUNTER, {"accept": None}]],
        [[match(SKUID, 5, "!="), LEAVE], [{"accept": None}]],
        [[match(SKUID, 5), DROP], [{"accept": None}]],
        [SOCKET_OF_ANY, [COUNTER, DROP]],
        [[match(DPORT, 5), LEAVE], [{"accept": None}]],
    ],
    ids=["empty", "always", "negated", "other-verdict", "without-socket", "other-condition"],
)
def test_a_guard_that_was_changed_is_none(guard: list[Expressions]) -> None:
    (found,) = read(TO_GUARD, nat_ISTIO_OUTPUT_if_1=guard)
    assert isinstance(found, OpaqueRule)


def test_a_guard_that_nobody_uses_is_a_stranger() -> None:
    found = parse_listing(listing([LEAVE], nat_ISTIO_OUTPUT_if_1=[OWNED, [{"accept": None}]])).tables
    assert "nat_ISTIO_OUTPUT_if_1" in found[Table.FILTER].chains


def test_tproxy_is_read_with_the_drop_behind_it() -> None:
    tcp = match({"meta": {"key": "l4proto"}}, "tcp")
    rule = Rule((TCP,), Target(TargetKind.TPROXY, port=15006, mark=1337))
    assert read([tcp, COUNTER, *TPROXY], [tcp, COUNTER, DROP]) == (rule,)
    for spoilt in ([[tcp, *TPROXY]], [[tcp, *TPROXY], [DROP]], [[tcp, *TPROXY], [tcp, LEAVE]]):
        assert any(isinstance(one, OpaqueRule) for one in read(*spoilt))


def base(**changes: object) -> Snapshot:
    chain: dict[str, object] = {"name": "nat_OUTPUT", "type": "nat", "hook": "output", "prio": -100, "policy": "accept"}
    rule = {"rule": {"chain": "nat_OUTPUT", "expr": [COUNTER, LEAVE]}}
    return parse_listing(json.dumps({"nftables": [{"chain": chain | changes}, rule]})).tables


def test_a_rule_in_a_base_chain_is_signed_as_a_plan_signs_it() -> None:
    signed = Rule((Match(MatchKind.COMMENT, "istio-init"),), RETURN)
    assert base() == {Table.NAT: TableState({}, inserted=(("OUTPUT", signed),))}


def test_a_base_chain_before_all_others_is_read_as_one_of_rules_that_stand_first() -> None:
    first = Rule((Match(MatchKind.COMMENT, "istio-init-first"),), RETURN)
    assert base(prio=-101) == {Table.NAT: TableState({}, inserted=(("OUTPUT", first),))}


@pytest.mark.parametrize(
    "change", [{"type": "filter"}, {"hook": "input"}, {"prio": -99}, {"prio": -102}, {"policy": "drop"}]
)
def test_a_base_chain_at_another_place_is_not_ours(change: dict[str, object]) -> None:
    assert base(**change) != base()


@pytest.mark.parametrize(
    "item",
    [
        {"set": {"name": "more", "type": "ipv4_addr"}},
        {"chain": {"name": "nat_MORE"}},
        {"chain": {"name": "nat_ISTIO_OUTPUT", "hook": "input", "type": "filter", "prio": 0, "policy": "accept"}},
        {"chain": {"name": "more_ISTIO_OUTPUT"}},
        {"table": {"name": "istio-init", "flags": ["dormant"]}},
    ],
)
def test_what_no_plan_writes_shows_in_a_comparison(item: dict[str, Any]) -> None:
    found = parse_listing(json.dumps({"nftables": [item]})).tables
    assert compare({}, found) != []


def test_a_plan_is_canonical_once_it_was_brought_in_order() -> None:
    plan = build_plan(
        Settings.of(
            CURRENT,
            inbound_ports="90,80,81",
            proxy_uids="7,5",
            service_exclude_cidrs="10.2.0.0/16,10.1.0.0/16,10.1.1.0/24",
            redirect_dns="true",
            capture_all_dns="true",
            tunnel_port="50",
        ),
    )
    once = canonical_tables(desired(plan, Family.IPV4))
    assert once != desired(plan, Family.IPV4)
    assert canonical_tables(once) == once
