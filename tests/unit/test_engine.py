"""What makes a change safe: what comes before what, what is kept, and what happens when a part fails or cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import CommandError, IstioInitError, NotPermitted, Unsupported
from istio_init.rules.changes import desired
from istio_init.rules.kernel.engine import Engine
from istio_init.rules.kernel.fake import FakeBackend, FakeSurroundings
from istio_init.rules.layout import CURRENT
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import NO_MARK, Family, Table, TproxyRoute
from istio_init.rules.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from istio_init.core.errors import IstioInitError as Error
    from istio_init.rules.kernel.backend import Backend, Changes, Snapshots
    from istio_init.rules.model import Marks, Plan

BOTH = tuple(Family)
REDIRECT = build_plan(Settings.of(proxy_uids="1337", service_cidrs="*", inbound_ports="9080"))
TPROXY = build_plan(Settings.of(inbound_ports="*", mode="TPROXY"))
OTHER_MARK = build_plan(Settings.of(inbound_ports="*", mode="TPROXY", tproxy_mark="7", tproxy_route_table="8"))
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


class OutOfReach(FakeBackend):
    """A fake whose surroundings nobody may look at."""

    def surroundings(self) -> FakeSurroundings:
        raise AssertionError


def test_a_pod_that_never_had_a_policy_route_is_not_searched_for_one() -> None:
    backend = OutOfReach()
    for plan in (REDIRECT, build_plan(Settings.of(inbound_ports="*")), REDIRECT):
        assert not Engine(backend).apply(plan).routed


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
    """A fake that makes the first table of a change and fails from then on."""

    def commit(self, changes: Changes) -> dict[Family, Error]:
        first = {family: wanted[:1] for family, wanted in changes.items() if self.transactions == 0}
        super().commit(first)
        return {family: Unsupported("the kernel is out of memory") for family in changes}


def test_when_the_state_before_cannot_be_put_back_both_failures_are_told() -> None:
    with pytest.raises(IstioInitError) as failure:
        Engine(Unrestorable()).apply(TPROXY, (Family.IPV4,))
    assert type(failure.value) is IstioInitError, "it is no longer known what is there"
    words = "the kernel is out of memory; the rollback failed too: the kernel is out of memory"
    assert str(failure.value) == words


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
        Engine(backend).apply(DUAL)
    assert failure.value.__notes__ == ["nothing was changed"]
    assert holds(backend, REDIRECT.only((Family.IPV4,)))


class Blind(FakeBackend):
    """A fake that cannot read some families, or sees them but for what only root may look at."""

    def __init__(self, unread: dict[Family, Error], in_part: Iterable[Family] = ()) -> None:
        super().__init__()
        self._unread = unread
        self._in_part = frozenset(in_part)

    def unread(self) -> dict[Family, Error]:
        return self._unread

    def seen_in_part(self) -> frozenset[Family]:
        return self._in_part


NO_TOOL = CommandError(("ip6tables-save",), None, "there is no such program", "install it")


@pytest.mark.parametrize(
    ("unread", "asked"),
    [(Family.IPV6, (Family.IPV6,)), (Family.IPV4, (Family.IPV4,)), (Family.IPV4, BOTH)],
    ids=["ipv6-alone", "ipv4-alone", "ipv4-of-both"],
)
def test_a_family_that_cannot_be_read_cannot_be_removed(unread: Family, asked: tuple[Family, ...]) -> None:
    backend = Blind({unread: NO_TOOL})
    Engine(backend).apply(DUAL)
    with pytest.raises(CommandError) as failure:
        Engine(backend).remove(asked)
    assert failure.value is NO_TOOL
    assert holds(backend, DUAL)


def test_where_ipv6_cannot_be_read_ipv4_is_removed_and_ipv6_keeps_what_its_rules_may_need() -> None:
    backend = Blind({Family.IPV6: NO_TOOL})
    Engine(backend).apply(DUAL)
    (warning,) = Engine(backend).remove().warnings
    assert warning == f"ipv6 was left alone, because its rules cannot be read: {NO_TOOL}"
    assert not any(state.chains for state in backend.kernel[Family.IPV4].values())
    assert backend.surroundings().find(frozenset()) == DUAL.routes[1:]
    assert backend.surroundings().addresses() == DUAL.addresses


def test_a_family_that_was_seen_in_part_is_removed_with_a_warning() -> None:
    backend = Blind({Family.IPV4: NotPermitted("only root may look at legacy tables")}, in_part=BOTH)
    Engine(backend).apply(REDIRECT)
    (warning,) = Engine(backend).remove().warnings
    assert warning == "there may be ipv4 rules of ours that were not seen: only root may look at legacy tables"
    assert not any(state.chains for tables in backend.kernel.values() for state in tables.values())


def test_an_apply_warns_of_families_that_may_hold_more_than_was_seen() -> None:
    (warning,) = Engine(Blind({Family.IPV6: NO_TOOL})).apply(REDIRECT).warnings
    assert warning == f"there may be ipv6 rules of ours that were not seen: {NO_TOOL}"


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
    assert backend.done == ["commit", "commit", *(("delete", route, False) for route in TPROXY.routes)]
    assert report.warnings == (
        "rules of ours that were made through another backend (fake; ipv4 plain, ipv6 plain) were removed",
    )
    assert (report.changed, report.routed) == (True, True)
    assert holds(backend, REDIRECT)
    assert not any(state.chains for tables in other.kernel.values() for state in tables.values())
    assert Engine(backend).apply(REDIRECT).warnings == ()


def test_when_those_of_another_backend_cannot_be_removed_all_is_as_it_was() -> None:
    other = FakeBackend()
    Engine(other).apply(REDIRECT)
    before = {family: dict(tables) for family, tables in other.kernel.items()}
    other._broken.add((Family.IPV4, NAT))  # noqa: SLF001 - from now on
    backend = Beside(other)
    with pytest.raises(Unsupported, match="told to fail") as failure:
        Engine(backend).apply(TPROXY)
    assert failure.value.__notes__ == ["the previous rules are in place again (rollback)"]
    assert not any(state.chains for tables in backend.kernel.values() for state in tables.values())
    assert backend.find(frozenset()) == ()
    assert all(backend.difference(before[family], other.kernel[family]) == [] for family in Family)


class Unreadable(FakeBackend):
    """A fake that cannot be read at all."""

    def read(self, families: tuple[Family, ...]) -> Snapshots:
        raise Unsupported(f"{len(families)} families are out of reach")


def test_another_backend_that_cannot_be_read_is_a_warning() -> None:
    for report in (Engine(Beside(Unreadable())).apply(REDIRECT), Engine(Beside(Unreadable())).remove()):
        assert report.warnings == tuple(
            f"there may be {family} rules of ours that were not seen: 2 families are out of reach" for family in Family
        )


class Unusable(FakeBackend):
    """A fake of which nothing exists here."""

    name = "first"

    def read(self, families: tuple[Family, ...]) -> Snapshots:
        del families
        raise CommandError(("iptables-save",), None, "there is no such program", "install it")

    def is_unusable(self) -> bool:
        return True


def test_where_nothing_of_a_backend_exists_the_one_to_fall_back_to_is_taken_and_that_is_told() -> None:
    told: list[str] = []
    backend = FakeBackend()
    engine = Engine(Unusable(), told.append, lambda: backend)
    assert engine.apply(REDIRECT, (Family.IPV4,)).backend == "fake"
    assert holds(backend, REDIRECT.only((Family.IPV4,)))
    engine.apply(REDIRECT)
    assert engine.remove((Family.IPV6,)).changed
    assert holds(backend, REDIRECT.only((Family.IPV4,)))
    assert (
        told
        == ["first cannot be used here: `iptables-save` did not run to its end: there is no such program; install it"] * 3
    )


def test_a_failure_of_a_backend_that_does_exist_is_no_reason_to_fall_back() -> None:
    for backend, fall_back in (
        (Unreadable(), FakeBackend),
        (Unusable(), None),
        (Blind({Family.IPV4: NO_TOOL}), FakeBackend),
    ):
        with pytest.raises(Unsupported):
            Engine(backend, fall_back=fall_back).remove()


def test_when_both_cannot_be_used_the_first_ones_failure_is_told_with_a_note_of_the_others() -> None:
    with pytest.raises(CommandError, match="iptables-save") as failure:
        Engine(Unusable(), fall_back=Unreadable).apply(REDIRECT)
    assert failure.value.__notes__ == ["the fallback without iptables failed too: 2 families are out of reach"]
