"""The second use of the case table: what a walk through the plan says of each connection."""

from __future__ import annotations

from istio_init.rules.layouts import reasons
from istio_init.rules.model import Plan, TargetKind
from istio_init.rules.walk import Packet, walk
from tests.cases import CASES, CLIENT, CLIENT_IPV6, DIRECT, LOCALHOST, POD, REJECTED, Case, Connection
from tests.sweeps import sweep


def packet_of(connection: Connection) -> Packet:
    uid, gid = connection.owner
    client = CLIENT_IPV6 if ":" in connection.address else CLIENT
    local = not connection.inbound and connection.address in (POD, LOCALHOST)
    return Packet(
        destination=connection.address,
        port=connection.port,
        source=client if connection.inbound else POD,
        protocol=connection.protocol,
        outbound=not connection.inbound,
        interface="lo" if local else "eth0",
        uid=uid,
        gid=gid,
    )


def traced_outcome(plan: Plan, connection: Connection) -> str:
    outcome = walk(plan, packet_of(connection)).outcome
    if outcome is None:
        return DIRECT
    return REJECTED if outcome.kind is TargetKind.REJECT else f"envoy:{outcome.port}"


@sweep("case", CASES, ids=lambda case: case.name)
def test_a_trace_tells_who_gets_each_connection(case: Case) -> None:
    plan = case.plan()
    told = {connection: traced_outcome(plan, connection) for connection in case.connections}
    assert told == {connection: connection.outcome for connection in case.connections}


def test_a_trace_names_the_rules_that_decided_in_order() -> None:
    plan = CASES[0].plan()
    steps = walk(plan, packet_of(Connection("10.96.0.10", 80, ""))).steps
    assert [(step.table.value, step.chain) for step in steps] == [
        ("nat", "OUTPUT"),
        ("nat", "ISTIO_OUTPUT"),
        ("nat", "ISTIO_REDIRECT"),
    ]
    assert steps[1].rule.reason == reasons.OUTBOUND_ALL_CAPTURED


def test_an_excluded_packet_ends_at_the_rule_that_excludes_it() -> None:
    case = next(case for case in CASES if case.name == "outbound-exclusions")
    *_, last = walk(case.plan(), packet_of(Connection("10.1.2.3", 3306, ""))).steps
    assert last.rule.reason == reasons.OUTBOUND_CIDR_EXCLUDED.of("10.1.0.0/16")


def test_a_known_connection_is_diverted_to_its_socket_under_tproxy() -> None:
    case = next(case for case in CASES if case.name == "tproxy-list")
    packet = packet_of(Connection(POD, 9080, "", inbound=True))._replace(has_socket=True, ctstate="ESTABLISHED")
    result = walk(case.plan(), packet)
    assert result.outcome is None
    assert [step.chain for step in result.steps][-2:] == ["ISTIO_DIVERT", "ISTIO_DIVERT"]


def test_answers_over_ipv6_come_in_although_it_is_closed() -> None:
    packet = packet_of(Connection("fd77::2", 5000, "", inbound=True))
    assert walk(CASES[0].plan(), packet._replace(ctstate="ESTABLISHED")).outcome is None
    rejected = walk(CASES[0].plan(), packet).outcome
    assert rejected is not None
    assert rejected.kind is TargetKind.REJECT
