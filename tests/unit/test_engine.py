"""What makes a change safe: what comes before what, what is kept, and what happens when a part fails or cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import CommandError, NotPermitted, ToolFault, Unsupported
from istio_init.rules.changes import NOTHING, desired
from istio_init.rules.handover import FROM_LOOPBACK, diverting_marks
from istio_init.rules.kernel.backend import Partial, Unread
from istio_init.rules.kernel.engine import Engine
from istio_init.rules.kernel.fake import FakeBackend, FakeSurroundings
from istio_init.rules.layout import CURRENT
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import NO_MARK, TPROXY_MARK, Family, Match, MatchKind, Rule, Table, TargetKind, TproxyRoute
from istio_init.rules.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.core.errors import IstioInitError as Error
    from istio_init.rules.kernel.backend import Backend, Changes, Readings
    from istio_init.rules.model import Marks, Plan

BOTH = tuple(Family)
REDIRECT = build_plan(Settings.of(proxy_uids="1337", service_cidrs="*", inbound_ports="9080"))
TPROXY = build_plan(Settings.of(inbound_ports="*", mode="TPROXY"))
OTHER_MARK = build_plan(Settings.of(inbound_ports="*", mode="TPROXY", tproxy_mark="7", tproxy_route_table="8"))
REDIRECT_DUAL = build_plan(Settings.of(CURRENT, inbound_ports="*", dual_stack="true"))
REDIRECT_DNS = build_plan(Settings.of(CURRENT, inbound_ports="*", redirect_dns="true", capture_all_dns="true"))
DUAL = build_plan(Settings.of(CURRENT, inbound_ports="*", mode="TPROXY", dual_stack="true"))
NAT, MANGLE = Table.NAT, Table.MANGLE


class Recorder(FakeBackend, FakeSurroundings):
    """A fake that says what was done to it, in order.

    Attributes:
        done: `commit`, or the name of a change of the surroundings and what it was given.
    """

    def __init__(self, broken: Iterable[tuple[Family, Table]] = (), missing: Iterable[Family] = ()) -> None:
        FakeBackend.__init__(self, frozenset(broken), frozenset(missing))
        FakeSurroundings.__init__(self)
        self.done: list[object] = []

    def surroundings(self) -> Recorder:
        return self

    def commit(self, changes: Changes) -> dict[Family, Error]:
        self.done.append("commit")
        return super().commit(changes)

    def add(self, route: TproxyRoute) -> bool:
        self.done.append(("add", route))
        return super().add(route)

    def delete(self, route: TproxyRoute, *, only_ours: bool) -> None:
        self.done.append(("delete", route, only_ours))
        super().delete(route, only_ours=only_ours)

    def add_address(self, cidr: str) -> bool:
        self.done.append(("add", cidr))
        return super().add_address(cidr)

    def delete_address(self, cidr: str) -> None:
        self.done.append(("delete", cidr))
        super().delete_address(cidr)


def holds(backend: FakeBackend, plan: Plan) -> bool:
    """Tell whether exactly this plan is there."""
    found = backend.surroundings()
    rules = [backend.difference(desired(plan, family), backend.kernel[family]) for family in Family]
    return rules == [[], []] and (found.find(frozenset()), found.addresses()) == (plan.routes, plan.addresses)


def test_what_rules_need_is_made_before_them_and_what_they_needed_is_removed_after_them() -> None:
    backend = Recorder()
    Engine(backend).apply(DUAL)
    assert backend.done == [("add", "::6/128"), *(("add", route) for route in DUAL.routes), "commit"]
    backend.done.clear()
    Engine(backend).apply(OTHER_MARK)
    assert backend.done == [
        *(("add", route) for route in OTHER_MARK.routes),
        "commit",
        *(("delete", route, False) for route in DUAL.routes),
        ("delete", "::6/128"),
    ]
    assert holds(backend, OTHER_MARK)


@pytest.mark.parametrize("plan", [REDIRECT, None], ids=["apply", "remove"])
def test_what_a_killed_run_left_is_removed_though_no_rule_shows_that_it_was_needed(plan: Plan | None) -> None:
    backend = FakeBackend()
    for route in DUAL.routes:
        backend.surroundings().add(route)
    for address in DUAL.addresses:
        backend.surroundings().add_address(address)
    report = Engine(backend).remove() if plan is None else Engine(backend).apply(plan)
    assert (report.routed, report.addressed) == (True, True)
    assert backend.surroundings().find(frozenset()) == ()
    assert backend.surroundings().addresses() == ()


class SharedTable(Recorder):
    """A fake in which a third party's rule leads to each table of ours, so that no rule of ours is needed."""

    def find(self, marks: Marks) -> tuple[TproxyRoute, ...]:
        return tuple(route._replace(mark=NO_MARK) for route in super().find(marks))


def test_a_route_that_a_third_partys_rule_leads_to_is_kept_while_the_plan_needs_it() -> None:
    backend = SharedTable()
    Engine(backend).apply(TPROXY)
    backend.done.clear()
    report = Engine(backend).apply(TPROXY)
    assert (report.changed, report.routed) == (False, False)
    assert backend.done == [("add", route) for route in TPROXY.routes]
    Engine(backend).apply(OTHER_MARK)
    assert [one for one in backend.done if "delete" in one] == [("delete", TproxyRoute(NO_MARK, 133), False)]  # type: ignore[operator]


def test_what_was_there_before_is_not_taken_back_when_a_change_fails() -> None:
    backend = Recorder(broken=[(Family.IPV4, MANGLE)])
    assert FakeSurroundings.add(backend, TPROXY.routes[0])
    with pytest.raises(Unsupported, match="told to fail"):
        Engine(backend).apply(TPROXY)
    assert [one for one in backend.done if one != "commit"] == [("add", TPROXY.routes[0])]
    assert backend.find(frozenset()) == TPROXY.routes


def test_what_was_made_for_a_change_that_fails_is_taken_back_in_reverse_without_parts_of_third_parties() -> None:
    backend = Recorder(broken=[(Family.IPV4, NAT)])
    with pytest.raises(Unsupported, match="told to fail") as failure:
        Engine(backend).apply(DUAL)
    one, other = DUAL.routes
    assert backend.done[-3:] == [("delete", other, True), ("delete", one, True), ("delete", "::6/128")]
    assert failure.value.__notes__ == ["the previous rules are in place again (rollback)"]
    assert (backend.find(frozenset()), backend.addresses()) == ((), ())


def test_a_family_that_was_not_asked_for_keeps_its_routes() -> None:
    backend = FakeBackend()
    Engine(backend).apply(DUAL)
    Engine(backend).apply(OTHER_MARK, (Family.IPV4,))
    assert backend.surroundings().find(frozenset()) == (*OTHER_MARK.routes, DUAL.routes[1])
    Engine(backend).remove((Family.IPV4,))
    assert backend.surroundings().find(frozenset()) == (DUAL.routes[1],)
    assert backend.surroundings().addresses() == DUAL.addresses


def test_when_nothing_was_written_yet_the_failure_says_so() -> None:
    backend = FakeBackend(broken=frozenset({(Family.IPV4, MANGLE)}))
    with pytest.raises(Unsupported) as failure:
        Engine(backend).apply(OTHER_MARK.only((Family.IPV4,)))
    assert failure.value.__notes__ == ["nothing was changed"]


class Unrestorable(FakeBackend):
    """A fake that makes one change, then the first table of another, and fails from then on."""

    def commit(self, changes: Changes) -> dict[Family, Error]:
        if self.transactions == 0:
            return super().commit(changes)
        if self.transactions == 1:
            super().commit({family: wanted[:1] for family, wanted in changes.items()})
        return {family: Unsupported("the kernel is out of memory") for family in changes}


def test_when_the_state_before_cannot_be_put_back_both_failures_are_told() -> None:
    backend = Unrestorable()
    Engine(backend).apply(REDIRECT.only((Family.IPV4,)), (Family.IPV4,))
    with pytest.raises(Unsupported) as failure:
        Engine(backend).apply(REDIRECT_DNS, (Family.IPV4,))
    words = "the kernel is out of memory; the rollback failed too: the kernel is out of memory"
    states = "ipv4 nat (fake) is as it was; ipv4 raw (fake) has changed"
    assert str(failure.value) == f"{words}; now {states}"


class OneTransaction(FakeBackend):
    """A fake that changes both families in one transaction, of which an absent family lets nothing pass."""

    all_or_nothing = True

    def commit(self, changes: Changes) -> dict[Family, Error]:
        bad = [family for family in changes if family in self._missing]
        return dict.fromkeys(changes, Unsupported("no such family")) if bad else super().commit(changes)


def test_where_one_transaction_is_for_all_families_those_that_work_are_written_without_the_one_that_does_not() -> None:
    backend = OneTransaction(missing=frozenset({Family.IPV6}))
    (warning,) = Engine(backend).apply(REDIRECT).warnings
    assert warning == "ipv6 rules are left out, because ipv6 does not work here: this fake has no ipv6"
    assert holds(backend, REDIRECT.only((Family.IPV4,)))
    with pytest.raises(Unsupported, match="no such family") as failure:
        Engine(backend).apply(REDIRECT_DUAL)
    assert failure.value.__notes__ == ["nothing was changed"]
    assert holds(backend, REDIRECT.only((Family.IPV4,)))


class Blind(FakeBackend):
    """A fake that cannot read some families, or sees all but what only root may look at; all of it can be told later."""

    def __init__(self, unread: dict[Family, Error], *, in_part: bool = False, missing: Iterable[Family] = ()) -> None:
        super().__init__(missing=frozenset(missing))
        self.unread = unread
        self._in_part = in_part

    def read(self, families: tuple[Family, ...]) -> Readings:
        readings = super().read(families)
        for family, why in self.unread.items():
            if family in families:
                readings[family] = Partial(self.kernel[family], why) if self._in_part else Unread(why)
        return readings


def no_tool() -> CommandError:
    return CommandError(("ip6tables-save",), None, "there is no such program", "install it")


@pytest.mark.parametrize(
    ("unread", "asked"),
    [(Family.IPV6, (Family.IPV6,)), (Family.IPV4, (Family.IPV4,)), (Family.IPV4, BOTH)],
    ids=["ipv6-alone", "ipv4-alone", "ipv4-of-both"],
)
def test_a_family_that_cannot_be_read_cannot_be_removed(unread: Family, asked: tuple[Family, ...]) -> None:
    backend = Blind({})
    Engine(backend).apply(DUAL)
    backend.unread = {unread: (error := no_tool())}
    with pytest.raises(CommandError) as failure:
        Engine(backend).remove(asked)
    assert failure.value is error
    assert error.__notes__ == ["nothing was changed"]
    assert holds(backend, DUAL)


KILLED = ToolFault(("ip6tables-save",), -9, "", "run this again")


@pytest.mark.parametrize("why", [no_tool(), KILLED], ids=["works", "fault"])
def test_a_family_that_cannot_be_read_is_not_written(why: Error) -> None:
    """Also one that may be left out where it does not work: here it works, or nobody knows."""
    missing = [Family.IPV6] if isinstance(why, ToolFault) else []
    backend = Blind({Family.IPV6: why}, missing=missing)
    with pytest.raises(CommandError) as failure:
        Engine(backend).apply(REDIRECT)
    assert failure.value is why
    assert backend.kernel == {family: {} for family in Family}


def test_an_optional_family_that_can_be_neither_read_nor_written_is_left_out() -> None:
    backend = Blind({Family.IPV6: no_tool()}, missing=[Family.IPV6])
    (warning,) = Engine(backend).apply(REDIRECT).warnings
    assert warning == "ipv6 rules are left out, because ipv6 does not work here: this fake has no ipv6"
    assert holds(backend, REDIRECT.only((Family.IPV4,)))


def test_a_family_that_was_seen_in_part_is_removed_with_a_warning() -> None:
    backend = Blind({Family.IPV4: NotPermitted("only root may look at legacy tables")}, in_part=True)
    Engine(backend).apply(REDIRECT)
    (warning,) = Engine(backend).remove().warnings
    assert warning == "there may be ipv4 rules of ours that were not seen: only root may look at legacy tables"
    assert not any(state.chains for tables in backend.kernel.values() for state in tables.values())


def test_an_apply_warns_of_families_that_may_hold_more_than_was_seen() -> None:
    (warning,) = Engine(Blind({Family.IPV6: no_tool()}, in_part=True)).apply(REDIRECT).warnings
    assert warning == f"there may be ipv6 rules of ours that were not seen: {no_tool()}"


class Beside(Recorder):
    """A fake that knows of another one, which holds rules of ours, too."""

    def __init__(self, other: FakeBackend) -> None:
        super().__init__()
        self._other = other

    def besides(self) -> Iterable[tuple[Backend, tuple[Family, ...]]]:
        return [(self._other, BOTH)]


def test_rules_of_ours_that_another_backend_made_are_removed_once_the_new_ones_are_in_place() -> None:
    other = Recorder()
    Engine(other).apply(TPROXY)
    backend = Beside(other)
    backend.done = other.done = []
    for route in TPROXY.routes:
        FakeSurroundings.add(backend, route)  # both are of one kernel
    report = Engine(backend).apply(REDIRECT)
    # The last commit redirects what bears the mark, too: see istio_init.rules.handover.
    assert backend.done == [*["commit"] * 3, *(("delete", route, False) for route in TPROXY.routes)]
    assert report.warnings == (
        "rules of ours that were made through another backend (fake; ipv4 plain, ipv6 plain) were removed",
    )
    assert (report.changed, report.routed) == (True, True)
    assert holds(backend, REDIRECT)
    assert not any(state.chains for tables in other.kernel.values() for state in tables.values())
    assert Engine(backend).apply(REDIRECT).warnings == ()


def test_when_those_of_another_backend_cannot_be_removed_all_is_as_it_was() -> None:
    other = FakeBackend()
    Engine(other).apply(TPROXY)
    before = {family: dict(tables) for family, tables in other.kernel.items()}
    other._broken.add((Family.IPV4, NAT))  # noqa: SLF001 - from now on
    backend = Beside(other)
    with pytest.raises(Unsupported, match="told to fail") as failure:
        Engine(backend).apply(TPROXY)
    assert failure.value.__notes__ == ["the previous rules are in place again (rollback)"]
    assert not any(state.chains for tables in backend.kernel.values() for state in tables.values())
    assert backend.find(frozenset()) == ()
    assert all(backend.difference(before[family], other.kernel[family]) == [] for family in Family)


def test_another_backend_that_cannot_be_read_ends_the_run_before_anything_is_changed() -> None:
    other = Blind({Family.IPV4: no_tool()})
    backend = Beside(other)
    with pytest.raises(CommandError):
        Engine(backend).apply(REDIRECT)
    with pytest.raises(CommandError):
        Engine(backend).remove()
    assert backend.done == []


def saves(backend: FakeBackend) -> str:
    """Say of which packets the rules of IPv4 save marks: of `all` with the mark, of those from `lo`, or of none."""
    state = backend.kernel[Family.IPV4].get(MANGLE, NOTHING)
    rules = [rule for _, rule in (*state.jumps, *state.inserted) if isinstance(rule, Rule)]
    saving = [rule for rule in rules if rule.target.kind is TargetKind.SAVE_MARK]
    return " and ".join("lo" if FROM_LOOPBACK in rule.matches else "all" for rule in saving)


class Watched(Beside):
    """Notes how both save marks, after each commit of either.

    Attributes:
        breaking: whether the last step fails, which comes when only the new rules are there.
    """

    breaking = False

    def __init__(self, other: FakeBackend) -> None:
        super().__init__(other)
        self.states: list[tuple[str, str]] = []
        commit = other.commit

        def watched(changes: Changes) -> dict[Family, Error]:
            return self.noted(commit(changes))

        other.commit = watched  # type: ignore[method-assign]

    def commit(self, changes: Changes) -> dict[Family, Error]:
        return self.noted(super().commit(changes))

    def noted(self, failed: dict[Family, Error]) -> dict[Family, Error]:
        self.states.append((saves(self._other), saves(self)))
        if self.breaking and self.states[-1] == ("", "lo"):
            self._broken.add((Family.IPV4, MANGLE))
            self.breaking = False
        return failed


def test_while_two_rule_sets_divert_packets_marks_are_saved_of_those_from_lo_only() -> None:
    other = FakeBackend()
    Engine(other).apply(DUAL)
    backend = Watched(other)
    Engine(backend).apply(DUAL)
    assert backend.states == [("lo", ""), ("lo", "lo"), ("", "lo"), ("", "all")]
    assert holds(backend, DUAL)


def test_where_the_plan_diverts_no_packets_marks_are_saved_of_all_until_the_old_rules_go() -> None:
    other = FakeBackend()
    Engine(other).apply(DUAL)
    backend = Watched(other)
    Engine(backend).apply(REDIRECT)
    assert backend.states == [("all", ""), ("", ""), ("", "")]


def redirects(backend: FakeBackend) -> str:
    """Say whether the rules of IPv4 redirect `all` that comes in, only what is `unmarked`, or nothing."""
    rules = [rule for chain, rule in backend.kernel[Family.IPV4].get(NAT, NOTHING).jumps if chain == "PREROUTING"]
    marked = Match(MatchKind.MARK, TPROXY_MARK, negated=True)
    return " and ".join("unmarked" if isinstance(rule, Rule) and marked in rule.matches else "all" for rule in rules)


class OfModes(FakeBackend):
    """Notes, after each commit, what is redirected, and whether anything is diverted by TPROXY."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[str, bool]] = []

    def commit(self, changes: Changes) -> dict[Family, Error]:
        failed = super().commit(changes)
        self.states.append((redirects(self), bool(diverting_marks(self.kernel[Family.IPV4]))))
        return failed


def test_while_both_modes_hold_what_one_diverts_the_other_does_not_redirect() -> None:
    backend = OfModes()
    Engine(backend).apply(REDIRECT)
    assert backend.states == [("all", False)]
    backend.states.clear()
    Engine(backend).apply(TPROXY)
    assert backend.states == [("unmarked", False), ("", True)]
    backend.states.clear()
    Engine(backend).apply(REDIRECT)
    assert backend.states == [("unmarked", False), ("all", False)]


def test_when_the_last_step_fails_the_old_rules_are_whole_before_the_new_ones_go() -> None:
    other = FakeBackend()
    Engine(other).apply(DUAL)
    before = {family: dict(tables) for family, tables in other.kernel.items()}
    backend = Watched(other)
    backend.breaking = True
    with pytest.raises(Unsupported, match="told to fail"):
        Engine(backend).apply(DUAL)
    assert backend.states[-3:] == [("lo", "lo"), ("lo", ""), ("all", "")]
    assert all(backend.difference(before[family], other.kernel[family]) == [] for family in Family)


def test_where_the_others_rules_cannot_be_changed_that_is_a_warning() -> None:
    other = FakeBackend()
    Engine(other).apply(DUAL)
    other._broken.add((Family.IPV4, MANGLE))  # noqa: SLF001 - from now on, once
    backend = Beside(other)
    report = Engine(backend).apply(DUAL)
    assert "connections may have been lost in this change: this fake was told to fail" in report.warnings[0]
    assert holds(backend, DUAL)
    assert saves(other) == ""


class Refused(FakeBackend):
    """A fake that only others may look at."""

    def read(self, families: tuple[Family, ...]) -> Readings:
        raise NotPermitted(f"{len(families)} families are out of reach")


def test_another_backend_that_this_user_may_not_look_at_is_a_warning() -> None:
    for report in (Engine(Beside(Refused())).apply(REDIRECT), Engine(Beside(Refused())).remove()):
        assert report.warnings == tuple(
            f"there may be {family} rules of ours that were not seen: 2 families are out of reach" for family in Family
        )


class Fallback(FakeBackend):
    """A fake of another rule set."""

    name = "second"


def test_a_family_in_which_iptables_does_not_work_moves_to_the_fallback_by_itself_with_a_warning() -> None:
    first, second = FakeBackend(missing=frozenset({Family.IPV4})), Fallback()
    report = Engine(first, fall_back=lambda: second).apply(REDIRECT)
    assert report.backend == "fake and second"
    assert report.warnings == ("ipv4 rules are in native nftables: this fake has no ipv4",)
    assert first.difference(desired(REDIRECT, Family.IPV6), first.kernel[Family.IPV6]) == []
    assert second.difference(desired(REDIRECT, Family.IPV4), second.kernel[Family.IPV4]) == []
    assert second.kernel[Family.IPV6] == {}
    assert not Engine(first, fall_back=lambda: second).apply(REDIRECT).changed


def test_a_family_that_works_in_neither_is_left_out_if_it_is_optional() -> None:
    missing = frozenset({Family.IPV6})
    first = FakeBackend(missing=missing)
    (warning,) = Engine(first, fall_back=lambda: Fallback(missing=missing)).apply(REDIRECT).warnings
    assert warning == "ipv6 rules are left out, because ipv6 does not work here: this fake has no ipv6"
    assert holds(first, REDIRECT.only((Family.IPV4,)))


def test_when_the_fallback_does_not_work_either_both_failures_are_told_and_all_is_as_it_was() -> None:
    first, second = FakeBackend(missing=frozenset({Family.IPV4})), Fallback(missing=frozenset({Family.IPV4}))
    for other in (second, Blind({Family.IPV4: no_tool()})):
        with pytest.raises(Unsupported, match="this fake has no ipv4") as failure:
            Engine(first, fall_back=lambda other=other: other).apply(REDIRECT)  # type: ignore[misc] # a plain closure
        note, state = failure.value.__notes__
        assert note.startswith("the fallback without iptables failed too: ")
        assert state == "the previous rules are in place again (rollback)"
        left = [tables for kernel in (first, other) for tables in kernel.kernel.values()]
        assert not any(held.chains for tables in left for held in tables.values())


class Faulty(FakeBackend):
    """A fake whose tools are killed."""

    def commit(self, changes: Changes) -> dict[Family, Error]:
        return dict.fromkeys(changes, ToolFault(("iptables-restore",), -9, "", "run this again"))


def test_a_tool_that_was_killed_is_no_reason_to_leave_out_a_family_or_to_fall_back() -> None:
    second = Fallback()
    for families in (BOTH, (Family.IPV6,)):
        with pytest.raises(ToolFault) as failure:
            Engine(Faulty(missing=frozenset(Family)), fall_back=lambda: second).apply(REDIRECT, families)
        assert failure.value.__notes__ == ["nothing was changed"]
    assert second.transactions == 0


def test_no_fallback_leaves_a_rule_set_that_holds_rules_of_ours() -> None:
    first, second = FakeBackend(), Fallback()
    Engine(first).apply(REDIRECT)
    first._missing = frozenset({Family.IPV4})  # noqa: SLF001 - from now on
    with pytest.raises(Unsupported, match="has no ipv4"):
        Engine(first, fall_back=lambda: second).apply(TPROXY)
    assert second.transactions == 0
