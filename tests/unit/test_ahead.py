"""Which third-party rules keep connections from a plan, and how that is told."""

from __future__ import annotations

import pytest

from istio_init.rules.ahead import (
    ENDS,
    MOST_DEPTH,
    MOST_FINDINGS,
    UNSEEN,
    Base,
    describe_connections,
    ends_of,
    find_ahead,
    rules_ahead,
)
from istio_init.rules.changes import NOTHING, desired
from istio_init.rules.layout import CURRENT, ISTIO_1_0
from istio_init.rules.layouts import build_plan
from istio_init.rules.matches.overlap import exclude, imply
from istio_init.rules.model import Family, Foreign, Jump, Match, MatchKind, Mode, Snapshot, Table
from istio_init.rules.render.foreign import read_foreign
from istio_init.rules.render.iptables import parse_save
from istio_init.rules.settings import Settings

EVERYTHING = Settings(proxy_uids=(1337,), service_cidrs=("*",), inbound_ports=("*",))
TODAYS = EVERYTHING._replace(layout=CURRENT)
DNS = TODAYS._replace(redirect_dns=True, nameservers=("127.0.0.11",))


def plan(settings: Settings, family: Family = Family.IPV4) -> Snapshot:
    return desired(build_plan(settings), family)


def found(*rules: str, chain: str = "OUTPUT", settings: Settings = EVERYTHING, ending: frozenset[str] = ENDS) -> list[str]:
    """Give the rules that are told, each with the chains that lead to it; `CHAIN: rule` is a rule of another chain."""
    chains: dict[str, list[Foreign]] = {chain: []}
    for rule in rules:
        name, sign, text = rule.partition(": ")
        chains.setdefault(name if sign else chain, []).append(Foreign(text if sign else rule))
    base = Base("nat", chain, chains[chain], chains, -100, "iptables-nft", ending)
    findings = find_ahead([base], plan(settings)[Table.NAT], chain)
    return [" > ".join((*(name for name, _ in one.path), one.chain, one.rule.text)) for one in findings]


@pytest.mark.parametrize(
    "rule",
    [
        "-p tcp -j ACCEPT",
        "-d 10.0.0.0/8 -j RETURN",
        "! -d 127.0.0.1/32 -j DNAT --to-destination 10.0.0.1",
        "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080",
        "! -o lo -j ACCEPT",
        "-m owner --uid-owner 0 -j RETURN",
        "-m owner ! --uid-owner 1337 -j ACCEPT",
        "-p tcp -m set --match-set theirs dst -j ACCEPT",
        '-p tcp -m comment --comment "-p udp" -j ACCEPT',
        "-p tcp -m multiport --dports 80,443 -j ACCEPT",
        "-p tcp -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
        "-g THEIRS",
        "-p tcp -j NFQUEUE --queue-num 1",
    ],
)
def test_a_rule_that_ends_the_way_before_ours_is_told(rule: str) -> None:
    assert found(rule) == [f"OUTPUT > {rule}"]


@pytest.mark.parametrize(
    "rule",
    [
        "-p udp -j ACCEPT",
        "-p icmp -j DROP",
        "! -p tcp -j ACCEPT",
        "-p tcp -j LOG",
        "-j MARK --set-xmark 0x1/0xffffffff",
        "-d 127.0.0.11/32 -j DNAT --to-destination 127.0.0.11:41000",
        "-d 127.0.0.11/32 -p tcp -m tcp --dport 53 -j DNAT --to-destination 127.0.0.11:41000",
        "-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m state --state RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m owner --uid-owner 1337 ! -o lo -j ACCEPT",
        "-d 127.0.0.1/32 -j ACCEPT",
        "-p tcp -j MISSING",
        "",
    ],
)
def test_a_rule_that_takes_no_captured_connection_away_is_not_told(rule: str) -> None:
    assert found(rule) == []


def test_what_a_plan_does_not_capture_is_not_told() -> None:
    some = EVERYTHING._replace(
        service_cidrs=("10.0.0.0/8",), service_exclude_cidrs=("10.9.0.0/16",), inbound_ports=("9080",)
    )
    assert found("-d 10.9.1.1/32 -j ACCEPT", "-d 192.0.2.0/24 -j ACCEPT", settings=some) == []
    assert found("-d 10.8.0.0/13 -j ACCEPT", settings=some) == ["OUTPUT > -d 10.8.0.0/13 -j ACCEPT"]
    to_ports = [f"-p tcp -m tcp --dport {ports} -j ACCEPT" for ports in ("80", "8000:9079", "9000:9080")]
    assert found(*to_ports, chain="PREROUTING", settings=some) == [f"PREROUTING > {to_ports[2]}"]


def test_of_rules_about_loopback_the_calls_of_a_pod_to_itself_count() -> None:
    some = EVERYTHING._replace(service_cidrs=("10.0.0.0/8",))
    assert found("-o lo -j ACCEPT", settings=some) == ["OUTPUT > -o lo -j ACCEPT"]
    assert found("-o lo -m owner ! --uid-owner 1337 -j ACCEPT", settings=TODAYS._replace(proxy_gids=())) == []


def test_dns_is_told_where_it_is_captured() -> None:
    to_docker = "DOCKER_OUTPUT: -d 127.0.0.11/32 -p {} --dport 53 -j DNAT --to-destination 127.0.0.11:43458"
    rules = ("-d 127.0.0.11/32 -j DOCKER_OUTPUT", to_docker.format("tcp -m tcp"), to_docker.format("udp -m udp"))
    assert found(*rules, settings=TODAYS) == []
    elsewhere = DNS._replace(nameservers=("10.0.0.10",))
    assert found(rules[0], rules[2], settings=elsewhere) == []
    assert found(*rules, settings=DNS) == [f"OUTPUT > {rule.replace(': ', ' > ', 1)}" for rule in rules[1:]]


def test_rules_in_chains_of_chains_are_told_with_the_way_to_them() -> None:
    rules = ("-m addrtype --dst-type LOCAL -j ONE", "ONE: -p tcp -j TWO", "TWO: ! -i docker0 -p tcp --dport 80 -j DNAT")
    assert found(*rules, chain="PREROUTING") == ["PREROUTING > ONE > TWO > ! -i docker0 -p tcp --dport 80 -j DNAT"]


def test_the_conditions_of_jumps_count() -> None:
    assert found("-p udp -j ONE", "ONE: -j ACCEPT") == []
    assert found("-p tcp -m tcp --dport 80 -j ONE", "ONE: -p tcp -m tcp ! --dport 80 -j ACCEPT") == []
    assert found("-d 10.0.0.0/8 -j ONE", "ONE: -d 192.0.2.1/32 -j ACCEPT") == []


def test_a_return_from_a_chain_leads_back_and_hides_what_follows_it_there() -> None:
    rules = ("-j ONE", "ONE: -p tcp -j RETURN", "ONE: -p tcp -j ACCEPT", "-p tcp -j DROP")
    assert found(*rules) == ["OUTPUT > -p tcp -j DROP"]
    assert found("-j ONE", "ONE: -d 10.0.0.0/8 -j RETURN", "ONE: -j ACCEPT", "-j DROP") == [
        "OUTPUT > ONE > -j ACCEPT",
        "OUTPUT > -j DROP",
    ]


def test_what_no_packet_comes_to_is_not_told() -> None:
    assert found("-j ONE", "ONE: -j ACCEPT", "-j DROP") == ["OUTPUT > ONE > -j ACCEPT"]
    assert found("-p tcp -j ACCEPT", "-p tcp -j DROP") == ["OUTPUT > -p tcp -j ACCEPT"]
    assert found("-j ONE", "ONE: -g TWO", "ONE: -j DROP", "TWO: -d 10.0.0.0/8 -j ACCEPT", "-j DROP") == [
        "OUTPUT > ONE > TWO > -d 10.0.0.0/8 -j ACCEPT",
        "OUTPUT > -j DROP",
    ]


def test_what_an_earlier_rule_of_the_chain_took_away_is_not_told_again() -> None:
    rules = ("-d 10.0.0.0/8 -j RETURN", "-d 10.1.0.0/16 -p tcp -j DNAT", "-d 192.0.2.0/24 -j DNAT")
    assert found("-j ONE", *(f"ONE: {rule}" for rule in rules)) == [f"OUTPUT > ONE > {rules[2]}"]


def test_a_rule_that_two_jumps_lead_to_is_told_once() -> None:
    rules = ("-d 10.0.0.0/8 -j ONE", "-d 192.0.2.0/24 -j ONE", "ONE: -p tcp -j ACCEPT")
    assert found(*rules) == ["OUTPUT > ONE > -p tcp -j ACCEPT"]


def test_of_rules_at_the_head_of_a_chain_only_those_before_ours_count() -> None:
    virtual = TODAYS._replace(virtual_interfaces=("vm0",))
    assert found("-i vm0 -p tcp -j ACCEPT", chain="PREROUTING", settings=virtual) == []
    assert found("-i vm1 -p tcp -j ACCEPT", chain="PREROUTING", settings=virtual) != []


@pytest.mark.parametrize(
    ("kind", "priority", "told"),
    [
        ("nat", -105, ["DNAT", "REDIRECT", "DROP"]),
        ("filter", -150, ["DROP", "REJECT", "TPROXY"]),
        ("filter", -300, ["DROP", "REJECT", "TPROXY", "NOTRACK", "CT --notrack"]),
        ("route", -150, ["DROP", "REJECT", "TPROXY"]),
    ],
)
def test_of_an_earlier_base_chain_only_what_keeps_packets_from_the_next_one_is_told(
    kind: str, priority: int, told: list[str]
) -> None:
    targets = ["ACCEPT", "RETURN", "DNAT", "REDIRECT", "DROP", "NFQUEUE", "NOTRACK", "CT --notrack"]
    targets = [*dict.fromkeys((*targets, *told))]
    rules = [f"-d 10.0.0.{number}/32 -j {target}" for number, target in enumerate(targets)]
    ending = ends_of(kind, priority, Table.NAT)
    assert sorted(rule.partition("-j ")[2] for rule in found(*rules, ending=ending)) == sorted(told)


def test_untracked_connections_are_not_kept_from_mangle() -> None:
    assert "NOTRACK" not in ends_of("filter", -300, Table.MANGLE)


def test_an_accept_in_an_earlier_base_chain_protects_from_a_drop_after_it() -> None:
    ending = ends_of("filter", -300, Table.NAT)
    assert found("-p tcp -j ACCEPT", "-j DROP", ending=ending) == []
    assert found("-d 10.0.0.0/8 -j ACCEPT", "-j DROP", ending=ending) == ["OUTPUT > -j DROP"]


@pytest.mark.parametrize(
    ("rules", "is_told"), [((), True), (("-d 10.0.0.0/8 -j ACCEPT",), True), (("-p tcp -j ACCEPT",), False)]
)
def test_a_policy_to_drop_is_told_if_anything_comes_to_it(rules: tuple[str, ...], is_told: bool) -> None:  # noqa: FBT001
    chain = [Foreign(rule) for rule in rules]
    base = Base("inet x", "y", chain, {"y": chain}, -200, "", ends_of("filter", -200, Table.NAT), drops=True)
    assert [one.rule.text for one in find_ahead([base], plan(EVERYTHING)[Table.NAT], "OUTPUT")] == [""] * is_told


def test_many_findings_deep_chains_and_long_walks_have_limits() -> None:
    assert len(found(*(f"-d 10.0.0.{number}/32 -j ACCEPT" for number in range(100)))) == MOST_FINDINGS
    deep = [f"{number}: -j {number + 1}" for number in range(MOST_DEPTH + 5)]
    assert found("-j 0", *deep, f"{MOST_DEPTH + 5}: -j ACCEPT") == []
    doubled = [rule for number in range(16) for rule in (f"{number}: -j {number + 1}", f"{number}: -j {number + 1}")]
    base_rules = [Foreign("-j 0")]
    chains = {"OUTPUT": base_rules}
    for rule in doubled:
        name, _, text = rule.partition(": ")
        chains.setdefault(name, []).append(Foreign(text))
    chains["16"] = [Foreign("-p tcp -j LOG")]
    base = Base("nat", "OUTPUT", base_rules, chains, -100, "iptables")
    assert [one.target for one in find_ahead([base], plan(EVERYTHING)[Table.NAT], "OUTPUT")] == [UNSEEN]


def saved(*rules: str) -> str:
    """Give a saved table; `-` stands for our jump."""
    lines = ["-A OUTPUT -p tcp -j ISTIO_OUTPUT" if rule == "-" else f"-A OUTPUT {rule}" for rule in rules]
    return "\n".join(
        ("*nat", ":PREROUTING ACCEPT [0:0]", ":OUTPUT DROP [0:0]", ":ISTIO_OUTPUT - [0:0]", *lines, "COMMIT", "")
    )


def test_rules_behind_ours_are_not_ahead_unless_ours_have_to_be_appended_again() -> None:
    ours = plan(EVERYTHING._replace(inbound_ports=()))[Table.NAT]
    behind = parse_save(saved("-p tcp -j LOG", "-", "-p tcp -j ACCEPT"))[Table.NAT]
    assert [one.text for one in rules_ahead(ours, behind, "OUTPUT")] == ["-p tcp -j LOG"]
    assert behind.theirs.dropping == {"OUTPUT"}
    missing = parse_save(saved("-p tcp -j LOG", "-p tcp -j ACCEPT"))[Table.NAT]
    assert [one.text for one in rules_ahead(ours, missing, "OUTPUT")] == ["-p tcp -j LOG", "-p tcp -j ACCEPT"]
    assert rules_ahead(ours, NOTHING, "OUTPUT") == ()


def test_nothing_in_their_own_chain_is_ahead_of_rules_that_stand_first() -> None:
    settings = EVERYTHING._replace(jump=Jump.FIRST)
    theirs = parse_save(saved("-p tcp -j LOG", "-", "-p tcp -j ACCEPT"))[Table.NAT]
    assert rules_ahead(plan(settings)[Table.NAT], theirs, "OUTPUT") == ()
    assert found("-p tcp -j ACCEPT", settings=settings) == ["OUTPUT > -p tcp -j ACCEPT"]  # in another base chain


def test_tproxy_and_both_families_are_looked_at() -> None:
    tproxy = TODAYS._replace(mode=Mode.TPROXY, ipv6=True)
    for family, rule in ((Family.IPV4, "-s 10.0.0.0/8 -j DROP"), (Family.IPV6, "-s fd00::/8 -p tcp -j DROP")):
        base = Base("mangle", "PREROUTING", [Foreign(rule)], {}, -150, "iptables")
        (one,) = find_ahead([base], plan(tproxy, family)[Table.MANGLE], "PREROUTING")
        assert one.rule.text == rule


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("-j ACCEPT",), "TCP connections"),
        (("-m owner --uid-owner 0 -j RETURN",), "TCP connections of user 0"),
        (
            ("-m addrtype --dst-type LOCAL -j ONE", "ONE: ! -i docker0 -p tcp -m tcp --dport 8000:8080 -j DNAT"),
            "TCP connections not through docker0 to port 8000-8080, as far as its other conditions hold",
        ),
        (
            ("-s 10.0.0.0/8 -j ONE", "ONE: -d 10.1.1.1/32 -j DROP"),
            "TCP connections from 10.0.0.0/8 to 10.1.1.1/32",
        ),
    ],
)
def test_the_connections_are_described(rules: tuple[str, ...], words: str) -> None:
    chains: dict[str, list[Foreign]] = {"PREROUTING": [Foreign(rules[0])]}
    for rule in rules[1:]:
        name, _, text = rule.partition(": ")
        chains.setdefault(name, []).append(Foreign(text))
    base = Base("nat", "PREROUTING", chains["PREROUTING"], chains, -100, "iptables")
    (one,) = find_ahead([base], plan(EVERYTHING)[Table.NAT], "PREROUTING")
    assert describe_connections(one) == words


def test_a_rule_for_both_protocols_is_described_by_neither() -> None:
    base = Base("nat", "OUTPUT", [Foreign("-m owner --uid-owner 0 -j RETURN")], {}, -100, "iptables")
    (one,) = find_ahead([base], plan(DNS._replace(nameservers=("10.0.0.10",)))[Table.NAT], "OUTPUT")
    assert describe_connections(one) == "connections of user 0"


def test_a_native_rule_that_is_read_as_several_is_told_once() -> None:
    rules = [Foreign("-p tcp -m tcp --dport 80 -j DNAT", 5), Foreign("-p tcp -m tcp --dport 443 -j DNAT", 5)]
    base = Base("ip foo", "pre", rules, {}, -105, "", ends_of("nat", -105, Table.NAT))
    (one,) = find_ahead([base], plan(EVERYTHING)[Table.NAT], "PREROUTING")
    assert describe_connections(one) == "TCP connections, as far as its other conditions hold"


@pytest.mark.parametrize(
    ("text", "matches", "is_whole", "target"),
    [
        ("-s 10.0.0.0/8 -p tcp -j X", 2, True, "X"),
        ("-s 10.0.0.0/255.0.255.0 -p tcp -j X", 1, False, "X"),
        ("-p tcp -m tcp --dport http -j X", 1, False, "X"),
        ("-m owner --uid-owner 0-99 -j X", 0, False, "X"),
        ("-m mark --mark 0x1/0xff -p tcp -j X", 1, False, "X"),
        ("[fib] -p tcp -j X", 1, False, "X"),
        ("-p tcp -m comment --comment word -g X", 1, True, "X"),
        ("-p tcp", 1, True, ""),
    ],
)
def test_a_rule_is_read_as_far_as_it_is_understood(text: str, matches: int, is_whole: bool, target: str) -> None:  # noqa: FBT001
    read = read_foreign(text)
    assert (len(read.matches), read.is_whole, read.target) == (matches, is_whole, target)


def match(kind: MatchKind, value: int | str, *, negated: bool = False) -> Match:
    return Match(kind, value, negated)


@pytest.mark.parametrize(
    ("kind", "narrow", "wide", "apart"),
    [
        (MatchKind.DESTINATION, "10.1.0.0/16", "10.0.0.0/8", "192.0.2.1/32"),
        (MatchKind.SOURCE, "fd00::1", "fd00::/8", "2001:db8::/32"),
        (MatchKind.DESTINATION_PORT, "80", "1:1024", "2000:3000"),
        (MatchKind.DESTINATION_PORTS, "80,443", "80:443", "8080"),
        (MatchKind.IN_INTERFACE, "eth0", "eth+", "lo"),
        (MatchKind.CTSTATE, "NEW", "NEW,RELATED", "ESTABLISHED"),
    ],
)
def test_conditions_on_the_same_property_are_compared(kind: MatchKind, narrow: str, wide: str, apart: str) -> None:
    assert imply([match(kind, narrow)], [match(kind, wide)])
    assert not imply([match(kind, wide)], [match(kind, narrow)])
    assert not exclude([match(kind, wide)], [match(kind, narrow)])
    assert exclude([match(kind, wide)], [match(kind, apart)])
    assert imply([match(kind, wide)], [match(kind, apart, negated=True)])
    assert exclude([match(kind, narrow)], [match(kind, wide, negated=True)])
    assert not exclude([match(kind, wide)], [match(kind, narrow, negated=True)])
    assert not exclude([match(kind, wide, negated=True)], [match(kind, apart, negated=True)])


def test_conditions_on_different_properties_are_not_compared() -> None:
    user, mark = Match(MatchKind.UID_OWNER, 0), Match(MatchKind.MARK, 1)
    assert not exclude([user], [Match(MatchKind.GID_OWNER, 1), mark])
    assert not imply([user], [mark])
    assert imply([], [Match(MatchKind.COMMENT, "any")])


def test_a_plan_without_a_layouts_dns_ignores_what_is_about_localhost() -> None:
    assert found("-d 127.0.0.0/8 -j ACCEPT", settings=EVERYTHING._replace(layout=ISTIO_1_0)) == []
