"""Layout current as a plan: what a walk says of each case, which rule comes before which, and all pairs of flags."""

from __future__ import annotations

from itertools import combinations

import pytest

from istio_init.core import argv
from istio_init.rules.changes import compare, desired
from istio_init.rules.layouts import build_plan, reasons
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    FIRST_COMMENT,
    NO_REASON,
    OWN_CHAINS,
    OWNER_COMMENT,
    Chain,
    Family,
    MatchKind,
    Plan,
    Rule,
    Table,
    TargetKind,
    TproxyRoute,
)
from istio_init.rules.options import OPTIONS
from istio_init.rules.render.iptables import parse_save, render_restore, render_rule
from istio_init.rules.settings import Settings
from istio_init.rules.walk import Packet, walk
from tests.cases import APP, CLIENT, DIRECT, LOCALHOST, POD, PROXY, SERVICE, Case, Connection, into, out
from tests.cases_current import (
    BOTH_SERVERS,
    CASES_CURRENT,
    LOCALHOST_IPV6,
    NAMESERVER,
    NAMESERVER_IPV6,
    PAIRS,
    SERVICE_IPV6,
    VALUES,
    case_of,
    packet_of,
)
from tests.pairs import cover_pairs
from tests.sweeps import sweep

BY_NAME = {case.name.removeprefix("current-"): case for case in CASES_CURRENT}
IN_IPV6 = {
    "127.0.0.1/32": "::1/128",
    "127.0.0.6/32": "::6/128",
    f"{NAMESERVER}/32": f"{NAMESERVER_IPV6}/128",
}


def current(**values: str) -> Plan:
    return build_plan(Settings.of("current", **values))


def chain(plan: Plan, name: str, table: Table = Table.NAT, family: Family = Family.IPV4) -> Chain:
    """Give one chain of a plan; one that it does not have is empty."""
    found = [one for one in plan.chains if (one.name, one.table, one.family) == (name, table, family)]
    assert len(found) <= 1
    return found[0] if found else Chain(family, table, name, ())


def texts(rules: tuple[Rule, ...]) -> list[str]:
    return [render_rule(rule) for rule in rules]


def outcome(plan: Plan, packet: Packet) -> str:
    target = walk(plan, packet).outcome
    return DIRECT if target is None else f"envoy:{target.port}"


def as_saved(script: str) -> str:
    """Give what iptables-save would print after this script: what is inserted stands before what is there."""
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith("-I "):
            table = max(number for number, one in enumerate(lines) if one.startswith("*"))
            lines.insert(table + 1, line.replace("-I", "-A", 1))
        else:
            lines.append(line)
    return "\n".join(lines)


@sweep("case", CASES_CURRENT, ids=lambda case: case.name)
def test_a_trace_tells_who_gets_each_connection(case: Case) -> None:
    plan = case.plan()
    told = {connection: outcome(plan, packet_of(connection)) for connection in case.connections}
    assert told == {connection: connection.outcome for connection in case.connections}


def test_each_flag_and_variable_has_a_case_of_its_own() -> None:
    few = [case for name, case in BY_NAME.items() if name not in ("long-names", "environment")]
    words = {word for case in few for word in case.flags}
    variables = {name for case in few for name in case.environment}
    for option in OPTIONS:
        assert set(option.flags) & words if option.flags else set(option.variables) & variables, option.name


def test_each_flag_is_in_all_pairs() -> None:
    for option in OPTIONS:
        assert {*option.flags, *option.variables} & set(VALUES), option.name


def test_all_pairs_are_covered_by_few_combinations() -> None:
    rows = cover_pairs(VALUES)
    for one, other in combinations(VALUES, 2):
        together = {(row[one], row[other]) for row in rows}
        assert together == {(a, b) for a in VALUES[one] for b in VALUES[other]}
    assert len(rows) < 40


@sweep("case", [*CASES_CURRENT, *PAIRS], ids=lambda case: case.name)
def test_what_is_rendered_for_a_restore_reads_back_as_the_same_plan(case: Case) -> None:
    plan = case.plan()
    for family in Family:
        read = parse_save(as_saved(render_restore(plan, family)))
        assert compare(desired(plan, family), read) == []


@sweep("case", PAIRS, ids=lambda case: case.name)
def test_whatever_is_combined_the_proxy_does_not_loop_and_localhost_and_udp_pass(case: Case) -> None:
    plan = case.plan()
    flags = argv.read(OPTIONS, case.flags, "apply")
    uids = str(flags.get("proxy_uids", "1337")).split(",")
    gids = str(flags.get("proxy_gids", ",".join(uids))).split(",")
    owners = [*((int(uid), 9) for uid in uids), *((9, int(gid)) for gid in gids)]
    never: list[Connection] = [
        *(out(address, 80, DIRECT, owner) for address in (SERVICE, SERVICE_IPV6) for owner in owners),
        *(out(address, 9080, DIRECT) for address in (LOCALHOST, LOCALHOST_IPV6)),
        *(out(SERVICE, 5000, DIRECT, owner, "udp") for owner in (APP, PROXY)),
        into(9080, DIRECT, protocol="udp"),
    ]
    assert {connection: outcome(plan, packet_of(connection)) for connection in never} == dict.fromkeys(never, DIRECT)


@sweep("case", PAIRS, ids=lambda case: case.name)
def test_each_rule_has_a_reason_and_each_rule_outside_of_our_chains_is_known_as_ours(case: Case) -> None:
    for one in case.plan().chains:
        for rule in (*one.inserted, *one.rules):
            assert rule.reason.id
            if one.name in BUILTIN_CHAINS:
                comments = [match.value for match in rule.matches if match.kind is MatchKind.COMMENT]
                unsigned = [] if rule.target.kind is TargetKind.JUMP else [OWNER_COMMENT]
                assert comments == ([FIRST_COMMENT] if "--jump" in case.flags else unsigned)
        assert one.name in BUILTIN_CHAINS | OWN_CHAINS


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_ipv6_has_the_rules_of_ipv4(mode: str) -> None:
    flags: dict[str, str | None] = {
        "-m": mode,
        "-b": "*",
        "-d": "9081",
        "-i": "*",
        "-q": "80",
        "-o": "81",
        "-c": "eth1",
        "-k": "vm0",
        "-u": "1,2",
        "--redirect-dns": "true",
        "--drop-invalid": "true",
        "--dual-stack": "true",
    }
    plan = case_of("families", flags, facts=BOTH_SERVERS).plan()
    ipv4, ipv6 = ([one for one in plan.chains if one.family is family] for family in Family)
    assert [in_ipv6(one) for one in ipv4] == [without_reasons(one) for one in ipv6]


def in_ipv6(one: Chain) -> Chain:
    def translated(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(
            Rule(tuple(m._replace(value=IN_IPV6.get(str(m.value), m.value)) for m in rule.matches), rule.target)
            for rule in rules
        )

    return one._replace(family=Family.IPV6, rules=translated(one.rules), inserted=translated(one.inserted))


def without_reasons(one: Chain) -> Chain:
    rules, inserted = (tuple(rule._replace(reason=NO_REASON) for rule in side) for side in (one.rules, one.inserted))
    return one._replace(rules=rules, inserted=inserted)


def test_the_rule_for_others_within_the_pod_comes_after_those_of_all_owners() -> None:
    plan = current(proxy_uids="1337,1338", proxy_gids="3000")
    assert texts(chain(plan, "ISTIO_OUTPUT").rules) == [
        "-s 127.0.0.6/32 -o lo -j RETURN",
        *(
            text
            for owner in ("--uid-owner 1337", "--uid-owner 1338", "--gid-owner 3000")
            for text in (
                f"! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner {owner} -j ISTIO_IN_REDIRECT",
                f"-m owner {owner} -j RETURN",
            )
        ),
        "-o lo -m owner ! --uid-owner 1337 -m owner ! --uid-owner 1338 -m owner ! --gid-owner 3000 -j RETURN",
        "-d 127.0.0.1/32 -j RETURN",
    ]


def test_what_decides_on_outbound_connections_comes_in_order() -> None:
    rules = chain(BY_NAME["environment"].plan(), "ISTIO_OUTPUT").rules
    assert list(dict.fromkeys(rule.reason.id for rule in rules)) == [
        reason.id
        for reason in (
            *(reasons.OUTBOUND_PORT_EXCLUDED, reasons.PROXY_SOURCE, reasons.TPROXY_TO_APP),
            *(reasons.PROXY_HAIRPIN_UID, reasons.PROXY_UID, reasons.PROXY_HAIRPIN_GID, reasons.PROXY_GID),
            *(reasons.APP_HAIRPIN, reasons.GROUP_EXCLUDED, reasons.DNS, reasons.LOCALHOST),
            *(reasons.OUTBOUND_CIDR_EXCLUDED, reasons.OUTBOUND_PORT_CAPTURED, reasons.OUTBOUND_CIDR_CAPTURED),
        )
    ]


def test_the_last_virtual_interface_stands_first_and_its_captures_before_its_returns() -> None:
    inserted = chain(current(virtual_interfaces="vm0,vm1", service_cidrs="10.0.0.0/8"), "PREROUTING").inserted
    ours = "-m comment --comment istio-init "
    assert texts(inserted) == [
        "-d 10.0.0.0/8 -i vm1 -j ISTIO_REDIRECT",
        "-d 10.0.0.0/8 -i vm0 -j ISTIO_REDIRECT",
        f"-i vm1 {ours}-j RETURN",
        f"-i vm0 {ours}-j RETURN",
    ]


def test_an_excluded_interface_is_excluded_where_packets_are_captured() -> None:
    for mode, tables in (("REDIRECT", [Table.NAT]), ("TPROXY", [Table.MANGLE, Table.NAT])):
        plan = current(mode=mode, exclude_interfaces="eth1", inbound_ports="*")
        found = [one.table for one in plan.chains if one.name == "PREROUTING" and "eth1" in str(one.rules[0])]
        assert sorted(found) == tables


def test_zones_of_conntrack_tell_the_proxys_requests_from_the_apps() -> None:
    plan = case_of("zones", {"--redirect-dns": "true", "-u": "1337", "-g": "3000"}, facts=BOTH_SERVERS).plan()
    assert texts(chain(plan, "ISTIO_OUTPUT_DNS", Table.RAW).rules) == [
        *(
            text
            for owner in ("--uid-owner 1337", "--gid-owner 3000")
            for text in (
                f"-p udp -m udp --dport 53 -m owner {owner} -j CT --zone 1",
                f"-p udp -m udp --sport 15053 -m owner {owner} -j CT --zone 2",
            )
        ),
        f"-d {NAMESERVER}/32 -p udp -m udp --dport 53 -j CT --zone 2",
    ]
    assert texts(chain(plan, "ISTIO_INBOUND", Table.RAW).rules) == [
        f"-s {NAMESERVER}/32 -p udp -m udp --sport 53 -j CT --zone 1"
    ]


def test_a_family_without_nameservers_redirects_no_requests() -> None:
    plan = BY_NAME["dns-one-family"].plan()
    for family, count in ((Family.IPV4, 1), (Family.IPV6, 0)):
        jumps = [
            rule for rule in chain(plan, "ISTIO_OUTPUT", family=family).rules if rule.target.chain == "ISTIO_OUTPUT_DNS"
        ]
        assert len(jumps) == count
        assert len(chain(plan, "PREROUTING", Table.RAW, family).rules) == count
        assert len(chain(plan, "OUTPUT", Table.RAW, family).rules) == 1


def test_policy_routes_are_wanted_for_each_family_and_only_where_tproxy_captures() -> None:
    assert current(mode="TPROXY", inbound_ports="80", dual_stack="true", tproxy_mark="7", tproxy_route_table="8").routes == (
        TproxyRoute(7, 8, Family.IPV4),
        TproxyRoute(7, 8, Family.IPV6),
    )
    assert current(mode="TPROXY", inbound_ports="80").routes == (TproxyRoute(1337, 133),)
    assert current(mode="TPROXY", dual_stack="true").routes == ()
    assert current(inbound_ports="80").routes == ()


def test_ipv6_wants_the_proxys_source_on_lo() -> None:
    assert current(dual_stack="true").addresses == ("::6/128",)
    assert current().addresses == ()
    assert current().families() == (Family.IPV4,)


def test_under_tproxy_the_proxys_connection_to_its_app_passes_by_all_captures() -> None:
    plan = current(mode="TPROXY", inbound_ports="*", service_cidrs="*")
    leaving = Packet(POD, 9080, source=CLIENT, interface="lo", uid=1337, gid=1337, mark=1337)
    assert walk(plan, leaving).outcome is None
    coming = walk(plan, leaving._replace(outbound=False))
    assert coming.outcome is None
    assert coming.steps[-1].rule.target.kind is TargetKind.SAVE_MARK
    answering = Packet(CLIENT, 40000, source=POD, uid=1000, gid=1000, ctstate="ESTABLISHED", connmark=1337)
    assert walk(plan, answering).steps[0].rule.target.kind is TargetKind.RESTORE_MARK


def test_packets_of_no_connection_are_dropped_before_anything_else() -> None:
    plan = current(mode="TPROXY", inbound_ports="*", drop_invalid="true")
    found = walk(plan, packet_of(into(9080, ""))._replace(ctstate="INVALID"))
    assert [step.chain for step in found.steps] == ["PREROUTING", "ISTIO_DROP"]
    assert found.outcome is not None
    assert found.outcome.kind is TargetKind.DROP


@pytest.mark.parametrize(
    ("cidr", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.5.0.0/16", True),
        ("127.0.0.0/8", True),
        ("::1", True),
        ("::1/64", False),
        ("127.0.0.1/7", False),
        ("0.0.0.0/0", False),
        ("::/0", False),
        ("10.0.0.0/8", False),
    ],
)
def test_what_an_app_sends_to_its_own_pod_is_captured_only_where_a_cidr_inside_loopback_is_included(
    cidr: str,
    is_loopback: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    plan = current(service_cidrs=f"10.96.0.0/16,{cidr}", dual_stack="true")
    for family in Family:
        told = [rule.reason for rule in chain(plan, "ISTIO_OUTPUT", family=family).rules]
        assert (reasons.APP_HAIRPIN in told) is not is_loopback
