"""A plan as text: for programs, for a shell, and for people."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given

from istio_init.core.errors import InvalidInput
from istio_init.rules.layout import CURRENT, ISTIO_1_0
from istio_init.rules.layouts import build_plan, reasons
from istio_init.rules.model import BUILTIN_CHAINS, Family, Plan, TproxyRoute, Variant
from istio_init.rules.render import render
from istio_init.rules.render.iptables import render_rule
from istio_init.rules.render.json import SCHEMA_VERSION
from istio_init.rules.settings import Settings
from tests.cases import CASES, Case
from tests.cases_current import CASES_CURRENT, PAIRS
from tests.sweeps import sweep
from tests.unit.strategies import valid_settings

FORMATS = ("restore", "commands", "json", "table")
REDIRECT = build_plan(Settings.of(proxy_uids="1337", inbound_ports="9080", service_cidrs="*"))
TPROXY = build_plan(Settings.of(inbound_ports="*", mode="TPROXY", tproxy_mark="42", tproxy_route_table="7"))
OPEN = build_plan(Settings.of(ENABLE_INBOUND_IPV6="1"))
DUAL = build_plan(
    Settings.of(CURRENT, inbound_ports="*", mode="TPROXY", tproxy_mark="42", tproxy_route_table="7", dual_stack="true")
)

each_case = sweep("case", [*CASES, *CASES_CURRENT, *PAIRS], ids=lambda case: case.name)


@given(settings=valid_settings)
def test_every_rule_of_every_plan_has_a_reason(settings: Settings) -> None:
    for chain in build_plan(settings).chains:
        assert chain.rules or chain.inserted
        assert all(rule.reason.id for rule in (*chain.inserted, *chain.rules))


@given(settings=valid_settings)
def test_the_reasons_of_a_chain_that_captures_tell_the_value(settings: Settings) -> None:
    told = {(rule.reason.id, rule.reason.value) for chain in build_plan(settings).chains for rule in chain.rules}
    for cidr in settings.service_exclude_cidrs:
        if settings.layout == ISTIO_1_0 or settings.ipv6 or ":" not in cidr:
            assert (reasons.OUTBOUND_CIDR_EXCLUDED.id, cidr) in told
    for owner in settings.proxy_uids:
        assert (reasons.PROXY_UID.id, str(owner)) in told


@each_case
def test_json_has_the_whole_plan_with_reasons(case: Case) -> None:
    plan = case.plan()
    document = json.loads(render(plan, "json"))
    assert list(document) == ["schema_version", "layout", "chains", "routes", "addresses"]
    assert document["schema_version"] == SCHEMA_VERSION == 1
    assert document["layout"] == case.layout
    assert [tuple(route.values()) for route in document["routes"]] == list(map(tuple, plan.routes))
    assert tuple(document["addresses"]) == plan.addresses
    assert [(c["family"], c["table"], c["chain"]) for c in document["chains"]] == [c[:3] for c in plan.chains]
    for chain, written in zip(plan.chains, document["chains"], strict=True):
        records = (*written.get("inserted", ()), *written["rules"])
        for rule, record in zip((*chain.inserted, *chain.rules), records, strict=True):
            assert set(record) == {"matches", "target", "text", "why"}
            assert record["why"] == rule.why != ""
            assert record["text"] == render_rule(rule)
            assert record["target"]["kind"] == rule.target.kind
            assert [(m["kind"], m["value"], m["negated"]) for m in record["matches"]] == list(map(tuple, rule.matches))


def test_json_has_routes_and_addresses_only_where_the_plan_has_some() -> None:
    routes = [{"mark": 42, "table": 7, "family": family} for family in ("ipv4", "ipv6")]
    assert json.loads(render(DUAL, "json"))["routes"] == routes
    assert json.loads(render(TPROXY, "json"))["routes"] == routes[:1]
    assert json.loads(render(REDIRECT, "json"))["routes"] == []
    assert json.loads(render(DUAL, "json"))["addresses"] == ["::6/128"]
    assert json.loads(render(TPROXY, "json"))["addresses"] == []


def test_json_tells_rules_at_the_head_of_a_chain_from_those_at_its_end() -> None:
    plan = build_plan(Settings.of(CURRENT, virtual_interfaces="vm0", exclude_interfaces="net1"))
    chains = json.loads(render(plan, "json"))["chains"]
    (chain,) = (chain for chain in chains if chain["chain"] == "PREROUTING")
    assert [rule["text"] for rule in chain["inserted"]] == ["-i vm0 -m comment --comment istio-init -j RETURN"]
    assert [rule["text"] for rule in chain["rules"]] == ["-i net1 -m comment --comment istio-init -j RETURN"]
    assert [chain["chain"] for chain in chains if "inserted" in chain] == ["PREROUTING"]


def test_json_leaves_out_what_a_target_does_not_have() -> None:
    targets = [rule["target"] for chain in json.loads(render(TPROXY, "json"))["chains"] for rule in chain["rules"]]
    assert {"kind": "RETURN"} in targets
    assert {"kind": "JUMP", "chain": "ISTIO_DIVERT"} in targets
    assert {"kind": "TPROXY", "port": 15001, "mark": 42} in targets


@each_case
def test_a_table_shows_each_rule_on_a_line_with_its_reason_at_the_end(case: Case) -> None:
    plan = case.plan()
    lines = iter(render(plan, "table").splitlines())
    assert next(lines) == f"Layout {case.layout}"
    columns = set()
    for chain in plan.chains:
        assert next(lines) == ""
        places = f"{len(chain.inserted)} at the head, the others appended" if chain.inserted else "these are appended"
        places = places if chain.rules else "these are at the head"
        note = f"  (built-in: {places})" if chain.name in BUILTIN_CHAINS else ""
        assert next(lines) == f"{chain.family} {chain.table} {chain.name}{note}"
        for number, rule in enumerate((*chain.inserted, *chain.rules), start=1):
            line = next(lines)
            assert line.startswith(f"{number:4}  ")
            assert line.endswith(f"  {rule.why}")
            columns.add(len(line) - len(rule.why))
    assert len(columns) == 1
    assert sum("policy route" in line or line.startswith("address") for line in lines) == len(plan.routes + plan.addresses)


def test_a_table_shows_each_policy_route_and_address() -> None:
    for family in Family:
        assert f"{family} policy route: fwmark 0x2a → table 7: local default dev lo" in render(DUAL, "table")
    assert "address ::6/128 on lo: " in render(DUAL, "table")


def test_an_empty_plan_can_be_written_in_each_format() -> None:
    empty = Plan("nothing", ())
    assert [render(empty, output_format) for output_format in ("restore", "commands", "table")] == [
        "",
        "",
        "Layout nothing\n",
    ]
    assert json.loads(render(empty, "json"))["chains"] == []


@each_case
def test_commands_make_chains_first_and_jumps_last_in_each_table(case: Case) -> None:
    by_table: dict[tuple[str, str], list[list[str]]] = {}
    for line in render(case.plan(), "commands").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] != "ip":  # policy routes and addresses come first
            assert words[1:3] == ["-w", "-t"]
            by_table.setdefault((words[0], words[3]), []).append(words[4:])
    for commands in by_table.values():
        steps = ["jump" if words[1] in BUILTIN_CHAINS else words[0] for words in commands]
        assert steps == sorted(steps, key=("-N", "-A", "jump").index)
        assert "jump" in steps
    assert any(words[0] == "-N" for commands in by_table.values() for words in commands)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("plain", {"iptables", "ip6tables"}),
        ("legacy", {"iptables-legacy", "ip6tables-legacy"}),
        ("nft", {"iptables-nft", "ip6tables-nft"}),
    ],
)
def test_commands_name_the_binaries_of_the_variant(variant: str, names: set[str]) -> None:
    text = render(REDIRECT, "commands", variant=Variant(variant))
    assert {line.split()[0] for line in text.splitlines() if not line.startswith("#")} == names


def test_the_policy_route_comes_first_among_commands_and_is_a_comment_in_a_restore_script() -> None:
    route = ["ip rule add fwmark 0x2a lookup 7", "ip route replace local default dev lo table 7"]
    assert render(TPROXY, "commands").splitlines()[1:3] == route
    assert render(TPROXY).splitlines()[1:3] == [f"# also needed: {command}" for command in route]


def test_commands_for_ipv6_name_the_family_and_begin_with_the_address() -> None:
    commands = [
        "ip -6 addr add ::6/128 dev lo",
        "ip -6 rule add fwmark 0x2a lookup 7",
        "ip -6 route replace local default dev lo table 7",
    ]
    assert render(DUAL, "commands", (Family.IPV6,)).splitlines()[1:4] == commands
    assert render(DUAL, "restore", (Family.IPV6,)).splitlines()[1:4] == [f"# also needed: {line}" for line in commands]
    assert "-6" not in render(DUAL, "commands", (Family.IPV4,))


@pytest.mark.parametrize("output_format", ["restore", "commands"])
def test_text_for_programs_has_a_heading_for_each_family(output_format: str) -> None:
    headings = [line for line in render(REDIRECT, output_format).splitlines() if line.startswith("# istio")]
    assert headings == ["# istio-1.0, ipv4", "# istio-1.0, ipv6"]


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("family", Family)
def test_one_family_can_be_written_alone(output_format: str, family: Family) -> None:
    text = render(TPROXY, output_format, (family,))
    other = next(one for one in Family if one is not family)
    assert family in text
    assert other not in text
    assert ("0x2a" in text or '"mark": 42' in text) == (family is Family.IPV4)


def test_each_route_belongs_to_its_family_and_the_address_to_ipv6() -> None:
    assert TPROXY.only((Family.IPV4,)).routes == (TproxyRoute(42, 7),)
    assert TPROXY.only((Family.IPV6,)).routes == ()
    assert DUAL.only((Family.IPV4,)).routes == (TproxyRoute(42, 7, Family.IPV4),)
    assert DUAL.only((Family.IPV6,)).routes == (TproxyRoute(42, 7, Family.IPV6),)
    assert (DUAL.only((Family.IPV4,)).addresses, DUAL.only((Family.IPV6,)).addresses) == ((), ("::6/128",))


def test_a_family_without_rules_has_no_text() -> None:
    assert OPEN.families() == (Family.IPV4,)
    assert render(OPEN, families=(Family.IPV6,)) == ""


@pytest.mark.parametrize("output_format", FORMATS)
@given(settings=valid_settings)
def test_text_ends_with_a_newline_and_is_the_same_each_time(output_format: str, settings: Settings) -> None:
    text = render(build_plan(settings), output_format)
    assert text.endswith("\n")
    assert text == render(build_plan(settings), output_format)


@pytest.mark.parametrize("output_format", ["", "yaml", "RESTORE"])
def test_an_unknown_format_is_bad_input(output_format: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        render(REDIRECT, output_format)
    assert str(caught.value) == f"format: {output_format!r} is not a format (allowed: restore, commands, nft, json or table)"
