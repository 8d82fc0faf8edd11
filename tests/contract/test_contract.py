"""What each backend promises, on each kernel interface that it reaches; the fake is held to the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest

from istio_init.backends.fake import FakeBackend
from istio_init.backends.libiptc import LibiptcBackend
from istio_init.backends.restore import RestoreBackend
from istio_init.errors import Unsupported
from istio_init.inspect import compare, desired
from istio_init.layouts import build_plan
from istio_init.model import Chain, Family, Plan, Rule, Table, Target, TargetKind, TproxyRoute, Variant
from istio_init.settings import Settings
from tests.netns.namespaces import Namespace
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from istio_init.backends.base import Backend

T = TypeVar("T")

REDIRECT = build_plan(Settings.of(proxy_uids="1337", service_cidrs="*", inbound_ports="9080"))
TPROXY = build_plan(Settings.of(proxy_uids="1337", service_cidrs="10.0.0.0/8", inbound_ports="*", mode="TPROXY"))
OTHER_MARK = build_plan(Settings.of(inbound_ports="*", mode="TPROXY", tproxy_mark="7", tproxy_route_table="133"))
BOTH = tuple(Family)

BACKENDS: dict[str, Callable[[], Backend]] = {
    "fake": FakeBackend,
    "restore-nft": lambda: RestoreBackend(Variant.NFT),
    "restore-legacy": lambda: RestoreBackend(Variant.LEGACY),
    "restore-auto": RestoreBackend,
    "libiptc": LibiptcBackend,
}


class Kernel(NamedTuple):
    """A fresh network namespace, and a backend in it."""

    backend: Backend
    namespace: Namespace | None

    def call(self, function: Callable[[], T]) -> T:
        return function() if self.namespace is None else self.namespace.call(function)

    def holds(self, plan: Plan) -> bool:
        """Tell whether exactly this plan is there, as the kernel itself says."""
        found = self.call(lambda: self.backend.read(BOTH))
        routes = self.call(self.backend.routes)
        same = all(not compare(desired(plan, family), found[family]) for family in BOTH)
        return same and routes == ((plan.route,) if plan.route else ())


NOTHING = Plan("nothing", ())


@pytest.fixture(params=BACKENDS)
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    backend = BACKENDS[request.param]()
    if isinstance(backend, FakeBackend):
        yield Kernel(backend, None)
        return
    need_namespaces()
    namespace = Namespace()
    namespace.run("ip", "link", "set", "lo", "up")
    yield Kernel(backend, namespace)
    namespace.close()


@pytest.mark.parametrize("plan", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_an_applied_plan_is_read_back_as_it_was(kernel: Kernel, plan: Plan) -> None:
    assert kernel.holds(NOTHING)
    report = kernel.call(lambda: kernel.backend.apply(plan))
    assert kernel.holds(plan)
    assert report.changed
    assert report.backend == kernel.backend.name
    assert (report.chains, report.rules) == (
        sum(chain.name.startswith("ISTIO") for chain in plan.chains),
        sum(len(chain.rules) for chain in plan.chains),
    )


@pytest.mark.parametrize("plan", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_a_second_apply_writes_nothing(kernel: Kernel, plan: Plan) -> None:
    kernel.call(lambda: kernel.backend.apply(plan))
    report = kernel.call(lambda: kernel.backend.apply(plan))
    assert not report.changed
    assert (report.chains, report.rules) == (0, 0)
    assert kernel.holds(plan)


@pytest.mark.parametrize(
    ("before", "after"),
    [(REDIRECT, TPROXY), (TPROXY, REDIRECT), (TPROXY, OTHER_MARK), (REDIRECT, REDIRECT.only((Family.IPV4,)))],
    ids=["to-tproxy", "to-redirect", "other-mark", "without-ipv6"],
)
def test_another_plan_replaces_the_one_before(kernel: Kernel, before: Plan, after: Plan) -> None:
    kernel.call(lambda: kernel.backend.apply(before))
    assert kernel.call(lambda: kernel.backend.apply(after)).changed
    assert kernel.holds(after)


@pytest.mark.parametrize("plan", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_remove_leaves_nothing_and_can_be_repeated(kernel: Kernel, plan: Plan) -> None:
    kernel.call(lambda: kernel.backend.apply(plan))
    assert kernel.call(kernel.backend.remove).changed
    assert kernel.holds(NOTHING)
    assert not kernel.call(kernel.backend.remove).changed


def test_a_family_can_be_worked_on_alone(kernel: Kernel) -> None:
    kernel.call(lambda: kernel.backend.apply(TPROXY, (Family.IPV6,)))
    assert kernel.holds(TPROXY.only((Family.IPV6,)))
    kernel.call(lambda: kernel.backend.apply(TPROXY))
    kernel.call(lambda: kernel.backend.remove((Family.IPV6,)))
    assert kernel.holds(TPROXY.only((Family.IPV4,)))


def test_a_probe_finds_that_both_families_work_and_leaves_nothing(kernel: Kernel) -> None:
    assert kernel.call(lambda: kernel.backend.probe({Family.IPV4: Table.NAT, Family.IPV6: Table.FILTER})) == {}
    assert kernel.holds(NOTHING)


def broken(plan: Plan) -> Plan:
    """Add a jump to a chain that does not exist, in the table that is written last."""
    rule = Rule((), Target(TargetKind.JUMP, chain="ISTIO_DROP"))
    return plan._replace(chains=(*plan.chains, Chain(Family.IPV4, Table.FILTER, "ISTIO_OUTPUT", (rule,))))


@pytest.mark.parametrize("before", [NOTHING, REDIRECT, OTHER_MARK], ids=["nothing", "redirect", "tproxy"])
def test_when_one_table_fails_all_is_as_it_was(kernel: Kernel, before: Plan) -> None:
    kernel.call(lambda: kernel.backend.apply(before))
    with pytest.raises(Unsupported) as failure:
        kernel.call(lambda: kernel.backend.apply(broken(TPROXY)))
    assert kernel.holds(before)
    assert "what was there before is in place again" in failure.value.__notes__


def test_routes_are_listed_added_once_and_deleted(kernel: Kernel) -> None:
    route, sibling = TproxyRoute(0xFFFFFFFF, 70000), TproxyRoute(5, 70000)
    assert kernel.call(lambda: kernel.backend.add_route(route))
    assert not kernel.call(lambda: kernel.backend.add_route(route))
    kernel.call(lambda: kernel.backend.add_route(sibling))
    kernel.call(lambda: kernel.backend.delete_route(route))
    assert kernel.call(kernel.backend.routes) == (sibling,)
    kernel.call(lambda: kernel.backend.delete_route(sibling))
    assert kernel.call(kernel.backend.routes) == ()


# A fake holds no rule that was not written through it.
@pytest.mark.parametrize("kernel", [name for name in BACKENDS if name != "fake"], indirect=True)
def test_an_unknown_rule_in_a_chain_of_ours_is_put_back_when_a_change_fails(kernel: Kernel) -> None:
    assert kernel.namespace is not None
    kernel.call(lambda: kernel.backend.apply(REDIRECT))
    variant = kernel.backend.variants((Family.IPV4,))[Family.IPV4]
    tool = f"iptables-{variant}"
    kernel.namespace.run(tool, "-t", "nat", "-I", "ISTIO_OUTPUT", "-m", "comment", "--comment", "by hand", "-j", "RETURN")
    before = kernel.namespace.save(variant)
    with pytest.raises(Unsupported):
        kernel.call(lambda: kernel.backend.apply(broken(TPROXY)))
    assert kernel.namespace.save(variant) == before
    assert "by hand" in before


def test_a_fake_can_be_told_to_fail_and_then_holds_what_it_held() -> None:
    backend = FakeBackend(broken=frozenset({(Family.IPV4, Table.NAT)}))
    with pytest.raises(Unsupported, match="told to fail in table nat"):
        backend.apply(TPROXY)
    assert Kernel(backend, None).holds(NOTHING)


def test_a_family_that_is_missing_is_a_warning_where_the_plan_can_do_without() -> None:
    backend = FakeBackend(missing=frozenset({Family.IPV6}))
    (warning,) = backend.apply(REDIRECT).warnings
    assert "ipv6" in warning
    assert Kernel(backend, None).holds(REDIRECT.only((Family.IPV4,)))


def test_a_family_that_is_missing_is_an_error_where_it_was_asked_for() -> None:
    backend = FakeBackend(missing=frozenset({Family.IPV6}))
    with pytest.raises(Unsupported, match="no ipv6"):
        backend.apply(REDIRECT, (Family.IPV6,))
