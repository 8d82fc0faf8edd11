"""Which change leads from what is in a kernel to what is wanted."""

from __future__ import annotations

import pytest
from hypothesis import given

from istio_init.core.errors import Unsupported
from istio_init.rules.changes import TableChange, compare, desired
from istio_init.rules.layout import CURRENT, LAYOUTS
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import (
    NO_REASON,
    Family,
    KernelRule,
    Match,
    MatchKind,
    OpaqueRule,
    Reason,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
)
from istio_init.rules.settings import Settings
from tests.unit.strategies import valid_settings

TCP = Match(MatchKind.PROTOCOL, "tcp")
REASON = Reason("some", "a reason")
TO_80 = Match(MatchKind.DESTINATION_PORT, "80")
RETURN = Rule((TCP, TO_80), Target(TargetKind.RETURN), REASON)
ACCEPT = Rule((), Target(TargetKind.ACCEPT))
JUMP = Rule((TCP,), Target(TargetKind.JUMP, chain="ISTIO_INBOUND"), REASON)
MARKED_JUMP = OpaqueRule('-m comment --comment "x" -j ISTIO_INBOUND')


def nat(chains: dict[str, tuple[KernelRule, ...]], *jumps: tuple[str, KernelRule]) -> Snapshot:
    return {Table.NAT: TableState(chains, jumps)}


WANTED = nat({"ISTIO_INBOUND": (RETURN, ACCEPT), "ISTIO_OUTPUT": (ACCEPT,)}, ("PREROUTING", JUMP))


def test_nothing_changes_when_all_is_in_place() -> None:
    assert compare(WANTED, WANTED) == []


def test_nothing_changes_when_nothing_is_wanted_and_nothing_is_there() -> None:
    assert compare({}, {}) == []
    assert compare({}, {Table.NAT: TableState({}, foreign=True), Table.FILTER: TableState({})}) == []


def test_reasons_and_the_order_of_conditions_make_no_difference() -> None:
    found = Rule((TO_80, TCP), Target(TargetKind.RETURN))
    current = nat(
        {"ISTIO_OUTPUT": (ACCEPT._replace(reason=Reason("another", "another reason")),), "ISTIO_INBOUND": (found, ACCEPT)},
        ("PREROUTING", JUMP._replace(reason=NO_REASON)),
    )
    assert compare(WANTED, current) == []


def test_foreign_rules_and_their_jumps_to_a_chain_that_stays_make_no_difference() -> None:
    current = {Table.NAT: WANTED[Table.NAT]._replace(foreign=True, users=(("ISTIO_INBOUND", "THEIRS"),))}
    assert compare(WANTED, {**current, Table.FILTER: TableState({}, foreign=True)}) == []


@pytest.mark.parametrize(
    "found",
    [
        (),
        (RETURN,),
        (ACCEPT, RETURN),
        (RETURN, ACCEPT, ACCEPT),
        (RETURN._replace(matches=(TCP,)), ACCEPT),
        (RETURN._replace(matches=(TCP, TO_80._replace(negated=True))), ACCEPT),
        (RETURN._replace(target=Target(TargetKind.ACCEPT)), ACCEPT),
        (OpaqueRule("-p tcp --dport 80 -j RETURN"), ACCEPT),
    ],
    ids=["empty", "shorter", "other-order", "longer", "fewer-conditions", "negated", "other-target", "opaque"],
)
def test_only_the_chain_that_differs_is_written(found: tuple[KernelRule, ...]) -> None:
    current = nat({"ISTIO_INBOUND": found, "ISTIO_OUTPUT": (ACCEPT,)}, ("PREROUTING", JUMP))
    assert compare(WANTED, current) == [TableChange(Table.NAT, {"ISTIO_INBOUND": (RETURN, ACCEPT)})]


def test_a_chain_that_is_missing_is_written_although_it_is_to_be_empty() -> None:
    assert compare(nat({"ISTIO_OUTPUT": ()}), nat({})) == [TableChange(Table.NAT, {"ISTIO_OUTPUT": ()})]


def test_opaque_rules_are_compared_by_their_text() -> None:
    wanted = nat({"ISTIO_OUTPUT": (OpaqueRule("-j LOG", native="one"),)})
    assert compare(wanted, nat({"ISTIO_OUTPUT": (OpaqueRule("-j LOG", native="two"),)})) == []
    (change,) = compare(wanted, nat({"ISTIO_OUTPUT": (OpaqueRule("-j NFLOG"),)}))
    assert change.chains == wanted[Table.NAT].chains


def test_chains_that_are_wanted_no_more_are_dropped() -> None:
    state = WANTED[Table.NAT]
    stale: dict[str, tuple[KernelRule, ...]] = {"ISTIO_REDIRECT": (ACCEPT,), "ISTIO_DROP": ()}
    current = {Table.NAT: state._replace(chains={**state.chains, **stale})}
    assert compare(WANTED, current) == [TableChange(Table.NAT, {}, dropped=("ISTIO_REDIRECT", "ISTIO_DROP"))]


@pytest.mark.parametrize(
    "jumps",
    [
        (),
        (("PREROUTING", JUMP), ("PREROUTING", JUMP)),
        (("OUTPUT", JUMP),),
        (("PREROUTING", JUMP), ("OUTPUT", JUMP)),
        (("PREROUTING", MARKED_JUMP),),
        (("PREROUTING", MARKED_JUMP), ("PREROUTING", JUMP)),
        (("PREROUTING", JUMP._replace(matches=())),),
    ],
    ids=["missing", "doubled", "elsewhere", "one-too-many", "opaque", "opaque-and-ours", "other-conditions"],
)
def test_jumps_that_differ_are_replaced_by_the_one_that_is_wanted(jumps: tuple[tuple[str, KernelRule], ...]) -> None:
    current = {Table.NAT: WANTED[Table.NAT]._replace(jumps=jumps)}
    expected = TableChange(Table.NAT, {}, removed_jumps=jumps, added_jumps=(("PREROUTING", JUMP),))
    assert compare(WANTED, current) == [expected]


HEAD = Rule((Match(MatchKind.IN_INTERFACE, "vm0"),), Target(TargetKind.JUMP, chain="ISTIO_INBOUND"))
OTHER_HEAD = HEAD._replace(matches=())


def with_heads(*heads: KernelRule, jumps: tuple[KernelRule, ...] = (JUMP,)) -> Snapshot:
    return {
        Table.NAT: TableState(
            {},
            jumps=tuple(("PREROUTING", jump) for jump in jumps),
            inserted=tuple(("PREROUTING", head) for head in heads),
        )
    }


@pytest.mark.parametrize(
    "found",
    [with_heads(HEAD), with_heads(HEAD, JUMP, jumps=())],
    ids=["before-and-behind-foreign-rules", "all-before-any-foreign-rule"],
)
def test_what_is_to_stand_at_the_head_is_in_place_before_any_foreign_rule(found: Snapshot) -> None:
    assert compare(with_heads(HEAD), found) == []


@pytest.mark.parametrize(
    "found",
    [
        with_heads(),
        with_heads(jumps=(HEAD, JUMP)),
        with_heads(JUMP, jumps=(HEAD,)),
        with_heads(OTHER_HEAD),
        with_heads(HEAD, HEAD),
        with_heads(HEAD, OTHER_HEAD),
    ],
    ids=["missing", "behind-a-foreign-rule", "behind-the-other", "other", "doubled", "one-too-many"],
)
def test_what_does_not_stand_at_the_head_as_it_should_is_put_there(found: Snapshot) -> None:
    (change,) = compare(with_heads(HEAD), found)
    assert change.removed_jumps == found[Table.NAT].inserted + found[Table.NAT].jumps
    assert change.inserted_jumps == (("PREROUTING", HEAD),)
    assert change.added_jumps == (("PREROUTING", JUMP),)


def test_what_was_at_the_head_for_want_of_foreign_rules_is_put_back_there() -> None:
    before, now = with_heads(JUMP, jumps=()), with_heads(HEAD, jumps=())
    (change,) = compare(before, now)
    assert (change.removed_jumps, change.inserted_jumps) == (now[Table.NAT].inserted, before[Table.NAT].inserted)


def test_the_order_between_built_in_chains_makes_no_difference() -> None:
    one, two = ("PREROUTING", JUMP), ("OUTPUT", JUMP)
    assert compare(nat({}, one, two), nat({}, two, one)) == []


def test_when_nothing_is_wanted_all_that_is_ours_goes() -> None:
    (change,) = compare({}, WANTED)
    assert change == TableChange(
        Table.NAT,
        {},
        dropped=("ISTIO_INBOUND", "ISTIO_OUTPUT"),
        removed_jumps=(("PREROUTING", JUMP),),
    )


def test_a_chain_that_a_foreign_chain_uses_cannot_be_dropped() -> None:
    current = {Table.NAT: WANTED[Table.NAT]._replace(users=(("ISTIO_INBOUND", "THEIRS"),))}
    with pytest.raises(Unsupported) as caught:
        compare({}, current)
    assert str(caught.value) == (
        "chain ISTIO_INBOUND of table nat cannot be removed: third-party chain THEIRS jumps to it; "
        "delete that rule (iptables -t nat -S THEIRS shows it) and run this again"
    )


def test_a_chain_that_a_foreign_chain_uses_can_be_rewritten() -> None:
    current = {Table.NAT: TableState({"ISTIO_INBOUND": ()}, users=(("ISTIO_INBOUND", "THEIRS"),))}
    (change,) = compare(WANTED, current)
    assert change.chains == WANTED[Table.NAT].chains


def test_tables_that_gain_come_before_those_that_only_lose() -> None:
    wanted = {Table.FILTER: WANTED[Table.NAT], Table.NAT: WANTED[Table.NAT]}
    current = {Table.RAW: WANTED[Table.NAT], Table.MANGLE: WANTED[Table.NAT]}
    order = [change.table for change in compare(wanted, current)]
    assert order == [Table.NAT, Table.FILTER, Table.RAW, Table.MANGLE]


def test_a_switch_to_tproxy_captures_in_mangle_before_it_lets_go_in_nat() -> None:
    redirect, tproxy = (
        desired(build_plan(Settings.of(inbound_ports="*", mode=mode)), Family.IPV4) for mode in ("REDIRECT", "TPROXY")
    )
    assert [(change.table, bool(change.added_jumps)) for change in compare(tproxy, redirect)] == [
        (Table.MANGLE, True),
        (Table.NAT, True),
    ]
    assert [change.table for change in compare(redirect, tproxy)] == [Table.NAT, Table.MANGLE]


def test_a_plan_wants_its_inserted_rules_at_the_head() -> None:
    plan = build_plan(Settings.of(CURRENT, virtual_interfaces="vm0", service_cidrs="*", exclude_interfaces="net1"))
    nat = desired(plan, Family.IPV4)[Table.NAT]
    assert [(chain, rule.target.kind) for chain, rule in nat.inserted if isinstance(rule, Rule)] == [
        ("PREROUTING", TargetKind.JUMP),
        ("PREROUTING", TargetKind.RETURN),
    ]
    assert [chain for chain, _ in nat.jumps] == ["PREROUTING", "OUTPUT", "OUTPUT"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_with_jump_first_all_rules_in_built_in_chains_belong_to_the_head_and_none_is_taken_for_one_without(
    layout: str, mode: str
) -> None:
    texts = {"inbound_ports": "", "service_cidrs": "*", "mode": mode}
    last, first = (desired(build_plan(Settings.of(layout, jump=jump, **texts)), Family.IPV4) for jump in ("last", "first"))
    for table, state in first.items():
        assert not state.jumps
        assert [chain for chain, _ in state.inserted] == [chain for chain, _ in (*last[table].inserted, *last[table].jumps)]
        # What stands first because it came first reads like what is to stand there.
        came_first = last[table]._replace(inserted=last[table].inserted + last[table].jumps, jumps=())
        assert compare({table: state}, {table: came_first}) != []
        assert compare({table: last[table]}, {table: state}) != []
        assert compare({table: state}, {table: state._replace(jumps=state.inserted, inserted=())}) != []


def test_what_a_plan_wants_is_kept_by_family_and_table() -> None:
    plan = build_plan(Settings.of(inbound_ports="80", mode="TPROXY"))
    assert set(desired(plan, Family.IPV4)) == {Table.NAT, Table.MANGLE}
    closed = desired(plan, Family.IPV6)
    assert set(closed) == {Table.FILTER}
    assert list(closed[Table.FILTER].chains) == ["ISTIO_INBOUND"]
    assert [chain for chain, _ in closed[Table.FILTER].jumps] == ["INPUT"]


def made(current: Snapshot, changes: list[TableChange]) -> Snapshot:
    """Make changes as a kernel would."""
    tables = dict(current)
    for change in changes:
        before = tables.get(change.table, TableState({}))
        chains = {name: rules for name, rules in before.chains.items() if name not in change.dropped} | change.chains
        jumps = tuple(jump for jump in before.jumps if jump not in change.removed_jumps)
        heads = tuple(jump for jump in before.inserted if jump not in change.removed_jumps)
        tables[change.table] = TableState(chains, jumps + change.added_jumps, inserted=change.inserted_jumps + heads)
    return tables


@given(before=valid_settings, after=valid_settings)
def test_the_changes_between_any_two_plans_lead_from_one_to_the_other(before: Settings, after: Settings) -> None:
    for family in Family:
        current, wanted = (desired(build_plan(settings), family) for settings in (before, after))
        result = made(current, compare(wanted, current))
        assert compare(wanted, result) == []
        assert compare(wanted, wanted) == []
        assert compare({}, made(result, compare({}, result))) == []
