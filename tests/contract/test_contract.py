"""What each backend promises, on each kernel interface that it reaches; the fake is held to the same."""

from __future__ import annotations

import fcntl
import re
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest

from istio_init.core.errors import InvalidInput, LockHeld, Unsupported
from istio_init.core.option import Value
from istio_init.rules.changes import desired
from istio_init.rules.kernel.engine import Engine, open_engine
from istio_init.rules.kernel.fake import FakeBackend
from istio_init.rules.kernel.libiptc import LibiptcBackend
from istio_init.rules.kernel.locks import Waits
from istio_init.rules.kernel.nft import NftBackend
from istio_init.rules.kernel.parts import seen
from istio_init.rules.kernel.restore import RestoreBackend
from istio_init.rules.layout import CURRENT
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import Chain, Family, Plan, Rule, Table, Target, TargetKind, TproxyRoute, Variant
from istio_init.rules.settings import NO_ACCOUNTS, HostFacts, Settings, parse_settings
from tests.cases import CASES
from tests.cases_current import CASES_CURRENT, PAIRS
from tests.netns.namespaces import Namespace
from tests.privileges import need_namespaces
from tests.unit.test_iptables_text import of_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from istio_init.rules.kernel.backend import Backend, Surroundings

T = TypeVar("T")

BOTH = tuple(Family)
FACTS = HostFacts(nameservers=("10.96.0.10", "fd00::10"))
EVERY_FLAG = {
    "proxy_uids": "1337,1338",
    "proxy_gids": "1337",
    "inbound_ports": "*",
    "inbound_exclude_ports": "15090,9000-9005",
    "service_cidrs": "*",
    "service_exclude_cidrs": "10.1.0.0/16,fd01::/32",
    "outbound_ports": "8000,9000-9010",
    "outbound_exclude_ports": "25",
    "exclude_interfaces": "net1,tap+",
    "virtual_interfaces": "vm0,vm1",
    "redirect_dns": "true",
    "drop_invalid": "true",
    "dual_stack": "true",
    "owner_groups": "5,6",
    "owner_groups_exclude": "7",
}


def current(**texts: str) -> Plan:
    values = {name: Value(text, name) for name, text in texts.items()}
    return build_plan(parse_settings(values, NO_ACCOUNTS, CURRENT, FACTS))


NOTHING = Plan("nothing", ())
REDIRECT = build_plan(Settings.of(proxy_uids="1337", service_cidrs="*", inbound_ports="9080"))
TPROXY = build_plan(Settings.of(proxy_uids="1337", service_cidrs="10.0.0.0/8", inbound_ports="*", mode="TPROXY"))
OTHER_MARK = build_plan(Settings.of(inbound_ports="*", mode="TPROXY", tproxy_mark="7", tproxy_route_table="133"))
EVERYTHING = current(**EVERY_FLAG)
# Both families, with policy routes, an address of lo, and DNS requests to any server.
DUAL = current(**EVERY_FLAG, mode="TPROXY", capture_all_dns="true")
DUAL_OTHER_MARK = current(mode="TPROXY", dual_stack="true", inbound_ports="80", tproxy_mark="9", tproxy_route_table="70000")
FIRST = build_plan(Settings.of(proxy_uids="1337", service_cidrs="*", inbound_ports="9080", jump="first"))
EVERYTHING_FIRST = current(**EVERY_FLAG, mode="TPROXY", jump="first")
INTERFACES = current(inbound_ports="80", service_cidrs="10.0.0.0/8", exclude_interfaces="net1", virtual_interfaces="vm0")

PLANS = {
    "redirect": REDIRECT,
    "tproxy": TPROXY,
    "current": EVERYTHING,
    "current-tproxy": DUAL,
    "current-interfaces": INTERFACES,
    "first": FIRST,
    "current-first": EVERYTHING_FIRST,
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))

BACKENDS: dict[str, Callable[[], Backend]] = {
    "fake": FakeBackend,
    "restore-nft": lambda: RestoreBackend(Variant.NFT),
    "restore-legacy": lambda: RestoreBackend(Variant.LEGACY),
    "restore-auto": RestoreBackend,
    "libiptc": LibiptcBackend,
    "nft": NftBackend,
}
# A fake holds nothing that was not written through it.
each_real_one = pytest.mark.parametrize("kernel", [name for name in BACKENDS if name != "fake"], indirect=True)
# Where rules stand beside those of others, in iptables' own chains.
each_of_iptables = pytest.mark.parametrize(
    "kernel", [name for name in BACKENDS if name not in ("fake", "nft")], indirect=True
)


class Kernel(NamedTuple):
    """A fresh network namespace, a backend in it, and the variant that this writes."""

    backend: Backend
    inside: Namespace | None = None
    variant: str = ""

    @property
    def engine(self) -> Engine:
        return Engine(self.backend)

    @property
    def surroundings(self) -> Surroundings:
        return self.backend.surroundings()

    def routes(self) -> tuple[TproxyRoute, ...]:
        return self.surroundings.find(frozenset())

    def delete_route(self, route: TproxyRoute) -> None:
        self.surroundings.delete(route, only_ours=False)

    @property
    def namespace(self) -> Namespace:
        assert self.inside is not None
        return self.inside

    def call(self, function: Callable[[], T]) -> T:
        return function() if self.inside is None else self.inside.call(function)

    def holds(self, plan: Plan) -> bool:
        """Tell whether exactly this plan is there, as the kernel itself says."""
        found, _ = self.call(lambda: seen(self.backend.read(BOTH)))
        same = all(not self.backend.difference(desired(plan, family), found[family]) for family in BOTH)
        routes, addresses = self.call(self.routes), self.call(self.surroundings.addresses)
        return same and routes == plan.routes and addresses == plan.addresses

    def everything(self) -> list[str]:
        """Give all that an apply may change, as the system's own tools show it."""
        shown = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip -o address show dev lo"
        rules = [self.namespace.save(variant, family) for variant in ("nft", "legacy") for family in BOTH]
        # In our own tables, one chain at most has a hook and priority, so that the order of chains says nothing.
        listing = ("nft", "-s", "list", "table")
        native = [self.namespace.run(*listing, family, "istio-init", check=False).stdout for family in ("ip", "ip6")]
        chains = [chain.strip("\n}") for table in native for chain in sorted(re.split(r"\n(?=\tchain )", table))]
        return [*rules, *chains, self.namespace.run("sh", "-c", shown).stdout]

    def tools(self) -> tuple[str, str]:
        """Name the program of each family that shows what this backend writes."""
        return f"iptables-{self.variant}", f"ip6tables-{self.variant}"


@pytest.fixture(params=BACKENDS)
def kernel(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    # Legacy iptables has one lock for the whole machine, whichever namespace it works on; other tests are not waited for.
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    backend = BACKENDS[request.param]()
    if isinstance(backend, FakeBackend):
        yield Kernel(backend)
        return
    need_namespaces()
    namespace = Namespace()
    namespace.run("ip", "link", "set", "lo", "up")
    yield Kernel(backend, namespace, "legacy" if request.param in ("restore-legacy", "libiptc") else "nft")
    namespace.close()


@each_plan
def test_a_plan_is_read_back_as_it_was_applied_found_in_place_and_removed_whole(kernel: Kernel, plan: Plan) -> None:
    assert kernel.holds(NOTHING)
    report = kernel.call(lambda: kernel.engine.apply(plan))
    assert kernel.holds(plan)
    assert report.changed
    assert report.backend == kernel.backend.name
    assert (report.chains, report.rules) == (
        sum(chain.name.startswith("ISTIO") for chain in plan.chains),
        sum(len(chain.rules) + len(chain.inserted) for chain in plan.chains),
    )
    assert (report.routed, report.addressed) == (bool(plan.routes), bool(plan.addresses))

    report = kernel.call(lambda: kernel.engine.apply(plan))
    assert not report.changed
    assert (report.chains, report.rules, report.routed, report.addressed) == (0, 0, False, False)
    assert kernel.holds(plan)

    report = kernel.call(kernel.engine.remove)
    assert (report.changed, report.routed, report.addressed) == (True, bool(plan.routes), bool(plan.addresses))
    assert kernel.holds(NOTHING)
    assert not kernel.call(kernel.engine.remove).changed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (REDIRECT, TPROXY),
        (TPROXY, REDIRECT),
        (TPROXY, OTHER_MARK),
        (REDIRECT, REDIRECT.only((Family.IPV4,))),
        (TPROXY, DUAL),
        (DUAL, TPROXY),
        (DUAL, DUAL_OTHER_MARK),
        (DUAL, DUAL.only((Family.IPV4,))),
        (DUAL, EVERYTHING),
        (EVERYTHING, INTERFACES),
        (INTERFACES, REDIRECT),
        (REDIRECT, FIRST),
        (FIRST, REDIRECT),
        (DUAL, EVERYTHING_FIRST),
        (EVERYTHING_FIRST, EVERYTHING),
    ],
    ids=[
        "to-tproxy",
        "to-redirect",
        "other-mark",
        "without-ipv6",
        "to-current",
        "from-current",
        "current-other-mark",
        "current-without-ipv6",
        "current-to-redirect",
        "current-to-interfaces",
        "interfaces-to-redirect",
        "to-first",
        "to-last",
        "current-to-first",
        "current-to-last",
    ],
)
def test_another_plan_replaces_the_one_before(kernel: Kernel, before: Plan, after: Plan) -> None:
    kernel.call(lambda: kernel.engine.apply(before))
    report = kernel.call(lambda: kernel.engine.apply(after))
    assert report.changed
    assert kernel.holds(after)
    assert (report.routed, report.addressed) == (before.routes != after.routes, before.addresses != after.addresses)


def test_each_case_replaces_the_one_before_and_is_found_in_place(kernel: Kernel) -> None:
    for case in (*CASES, *CASES_CURRENT, *PAIRS):
        plan = case.plan()
        kernel.call(lambda plan=plan: kernel.engine.apply(plan))  # type: ignore[misc] # a plain closure
        assert kernel.holds(plan), case.name
        assert not kernel.call(lambda plan=plan: kernel.engine.apply(plan)).changed, case.name  # type: ignore[misc] # as above
    kernel.call(kernel.engine.remove)
    assert kernel.holds(NOTHING)


@pytest.mark.parametrize("plan", [TPROXY, DUAL], ids=["tproxy", "current-tproxy"])
@pytest.mark.parametrize(("one", "other"), [BOTH, BOTH[::-1]], ids=BOTH)
def test_a_family_can_be_worked_on_alone(kernel: Kernel, plan: Plan, one: Family, other: Family) -> None:
    kernel.call(lambda: kernel.engine.apply(plan, (one,)))
    assert kernel.holds(plan.only((one,)))
    kernel.call(lambda: kernel.engine.apply(plan))
    kernel.call(lambda: kernel.engine.apply(NOTHING, (other,)))
    assert kernel.holds(plan.only((one,)))
    kernel.call(lambda: kernel.engine.apply(plan))
    kernel.call(lambda: kernel.engine.remove((one,)))
    assert kernel.holds(plan.only((other,)))


def test_a_probe_finds_that_both_families_work_and_leaves_nothing(kernel: Kernel) -> None:
    assert kernel.call(lambda: kernel.backend.probe({Family.IPV4: Table.NAT, Family.IPV6: Table.FILTER})) == {}
    assert kernel.holds(NOTHING)


def broken(plan: Plan) -> Plan:
    """Add a jump to a chain that does not exist, in the table that is written last."""
    rule = Rule((), Target(TargetKind.JUMP, chain="ISTIO_DROP"))
    return plan._replace(chains=(*plan.chains, Chain(Family.IPV4, Table.FILTER, "ISTIO_OUTPUT", (rule,))))


@pytest.mark.parametrize(
    "before",
    [NOTHING, REDIRECT, OTHER_MARK, DUAL_OTHER_MARK, FIRST],
    ids=["nothing", "redirect", "tproxy", "current-tproxy", "first"],
)
@pytest.mark.parametrize("wanted", [TPROXY, DUAL, EVERYTHING_FIRST], ids=["to-tproxy", "to-current-tproxy", "to-first"])
def test_when_one_table_fails_all_is_as_it_was(kernel: Kernel, before: Plan, wanted: Plan) -> None:
    kernel.call(lambda: kernel.engine.apply(before))
    with pytest.raises(Unsupported) as failure:
        kernel.call(lambda: kernel.engine.apply(broken(wanted)))
    assert kernel.holds(before)
    # Where one transaction makes a whole change, nothing is to be put back.
    assert {"the previous rules are in place again (rollback)", "nothing was changed"} & set(failure.value.__notes__)


@pytest.mark.parametrize("family", Family)
def test_routes_are_listed_added_once_and_deleted(kernel: Kernel, family: Family) -> None:
    route, sibling = TproxyRoute(0xFFFFFFFF, 70000, family), TproxyRoute(5, 70000, family)
    assert kernel.call(lambda: kernel.surroundings.add(route))
    assert not kernel.call(lambda: kernel.surroundings.add(route))
    kernel.call(lambda: kernel.surroundings.add(sibling))
    kernel.call(lambda: kernel.delete_route(route))
    assert kernel.call(kernel.routes) == (sibling,)
    kernel.call(lambda: kernel.delete_route(sibling))
    assert kernel.call(kernel.routes) == ()


def test_each_family_has_routes_of_its_own_ipv4_first(kernel: Kernel) -> None:
    routes = (TproxyRoute(5, 7, Family.IPV4), TproxyRoute(5, 7, Family.IPV6))
    for route in reversed(routes):
        assert kernel.call(lambda route=route: kernel.surroundings.add(route))  # type: ignore[misc] # a plain closure
    assert kernel.call(kernel.routes) == routes
    kernel.call(lambda: kernel.delete_route(routes[0]))
    assert kernel.call(kernel.routes) == routes[1:]


def test_addresses_are_listed_added_once_and_deleted(kernel: Kernel) -> None:
    assert kernel.call(lambda: kernel.surroundings.add_address("::6/128"))
    assert not kernel.call(lambda: kernel.surroundings.add_address("::6/128"))
    assert kernel.call(kernel.surroundings.addresses) == ("::6/128",)
    kernel.call(lambda: kernel.surroundings.delete_address("::6/128"))
    assert kernel.call(kernel.surroundings.addresses) == ()


FOREIGN_CHAINS = (
    ("nat", "PREROUTING"),
    ("nat", "OUTPUT"),
    ("mangle", "PREROUTING"),
    ("mangle", "OUTPUT"),
    ("raw", "OUTPUT"),
)


def add_foreign_address(kernel: Kernel, address: str) -> None:
    kernel.namespace.run("ip", "address", "add", f"{address}/128", "dev", "lo")
    deadline = time.monotonic() + 10  # seconds; the kernel makes the address's own route a little later
    while f"local {address} dev lo" not in kernel.namespace.run("ip", "-6", "route", "show", "table", "local").stdout:
        assert time.monotonic() < deadline


def add_foreign_rules(kernel: Kernel) -> None:
    """Write third-party rules in the chains that ours stand in, two in each, and a route and an address like ours."""
    for tool in kernel.tools():
        for table, chain in FOREIGN_CHAINS:
            kernel.namespace.run(tool, "-t", table, "-A", chain, "-p", "tcp", "--dport", "7", "-j", "RETURN")
            said = ("-m", "comment", "--comment", "not istio-init, -j ISTIO_OUTPUT")
            kernel.namespace.run(tool, "-t", table, "-A", chain, *said, "-j", "RETURN")
    for ip in (("ip",), ("ip", "-6")):
        kernel.namespace.run(*ip, "rule", "add", "fwmark", "99", "lookup", "99")
        kernel.namespace.run(*ip, "route", "add", "local", "default", "dev", "lo", "table", "99")
    add_foreign_address(kernel, "::7")


def rules_of(kernel: Kernel, tool: str, table: str, chain: str) -> list[str]:
    listed = kernel.namespace.run(tool, "-t", table, "-S", chain).stdout.splitlines()
    return [line for line in listed if line.startswith("-A")]


@each_real_one
@each_plan
def test_remove_gives_a_namespace_with_rules_of_others_back_as_it_was(kernel: Kernel, plan: Plan) -> None:
    add_foreign_rules(kernel)
    before = kernel.everything()
    kernel.call(lambda: kernel.engine.apply(plan))
    assert kernel.everything() != before
    kernel.call(kernel.engine.remove)
    assert kernel.everything() == before


@each_of_iptables
def test_what_belongs_at_the_head_stands_before_rules_of_others_and_the_rest_behind(kernel: Kernel) -> None:
    add_foreign_rules(kernel)
    foreign = [rules_of(kernel, tool, "nat", "PREROUTING") for tool in kernel.tools()]
    for _ in range(2):
        kernel.call(lambda: kernel.engine.apply(EVERYTHING))
        for tool, others in zip(kernel.tools(), foreign, strict=True):
            found = rules_of(kernel, tool, "nat", "PREROUTING")
            assert [f" -i {name} " in rule for name, rule in zip(("vm1", "vm0") * 2, found, strict=False)] == [True] * 4
            assert found[4:6] == others
            assert found[-1].endswith("-j ISTIO_INBOUND")
            assert len(found) == 4 + 2 + 3


@each_of_iptables
def test_a_rule_of_others_that_came_before_what_belongs_at_the_head_goes_behind_it_again(kernel: Kernel) -> None:
    kernel.call(lambda: kernel.engine.apply(EVERYTHING))
    assert not kernel.call(lambda: kernel.engine.apply(EVERYTHING)).changed
    tool, _ = kernel.tools()
    kernel.namespace.run(tool, "-t", "nat", "-I", "PREROUTING", "-i", "vm0", "-j", "ACCEPT")
    assert kernel.call(lambda: kernel.engine.apply(EVERYTHING)).changed
    assert [" -i vm" in rule and "ACCEPT" in rule for rule in rules_of(kernel, tool, "nat", "PREROUTING")].index(True) == 4


def places(kernel: Kernel) -> dict[tuple[str, str, str], str]:
    """Tell of each built-in chain with third-party rules where ours stand: `first`, `last`, or in what order else."""
    found = {}
    for tool in kernel.tools():
        for table, chain in FOREIGN_CHAINS:
            rules = rules_of(kernel, tool, table, chain)
            ours = ["-j ISTIO" in rule or "--comment istio-init" in rule for rule in rules]
            ours = [one and '"' not in rule for one, rule in zip(ours, rules, strict=True)]
            if any(ours):
                sorts = {"first": sorted(ours, reverse=True), "last": sorted(ours)}
                found[tool, table, chain] = next((name for name, order in sorts.items() if order == ours), str(rules))
    return found


@each_of_iptables
def test_rules_that_are_to_stand_first_do_so_in_every_chain_and_third_party_rules_stay_in_order(kernel: Kernel) -> None:
    last = current(**{name: text for name, text in EVERY_FLAG.items() if name != "virtual_interfaces"}, mode="TPROXY")
    add_foreign_rules(kernel)
    before = kernel.everything()
    for plan, place in ((EVERYTHING_FIRST, "first"), (last, "last"), (EVERYTHING_FIRST, "first")):
        assert kernel.call(lambda plan=plan: kernel.engine.apply(plan)).changed  # type: ignore[misc] # a plain closure
        assert set(places(kernel).values()) == {place}
        assert len(places(kernel)) == 2 * len(FOREIGN_CHAINS)
        assert not kernel.call(lambda plan=plan: kernel.engine.apply(plan)).changed  # type: ignore[misc] # as above
    kernel.call(kernel.engine.remove)
    assert kernel.everything() == before


@each_of_iptables
def test_rules_that_are_to_stand_first_do_so_again_once_a_third_party_rule_came_before_them(kernel: Kernel) -> None:
    kernel.call(lambda: kernel.engine.apply(FIRST))
    tool, _ = kernel.tools()
    kernel.namespace.run(tool, "-t", "nat", "-I", "OUTPUT", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
    kernel.namespace.run(tool, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "81", "-j", "ACCEPT")
    assert kernel.call(lambda: kernel.engine.apply(FIRST)).changed
    found = rules_of(kernel, tool, "nat", "OUTPUT")
    assert [rule.split()[-1] for rule in found] == ["ISTIO_OUTPUT", "ACCEPT", "ACCEPT"]
    assert ["--dport 80" in rule for rule in found[1:]] == [True, False]
    assert not kernel.call(lambda: kernel.engine.apply(FIRST)).changed


@each_real_one
@pytest.mark.parametrize(("one", "other"), [(EVERYTHING, DUAL), (EVERYTHING_FIRST, DUAL)], ids=["last", "first"])
def test_when_a_table_fails_each_rule_stands_again_where_it_stood(kernel: Kernel, one: Plan, other: Plan) -> None:
    add_foreign_rules(kernel)
    kernel.call(lambda: kernel.engine.apply(one))
    before = kernel.everything()
    with pytest.raises(Unsupported):
        kernel.call(lambda: kernel.engine.apply(broken(other)))
    assert kernel.everything() == before


@each_of_iptables
def test_an_unknown_rule_in_a_chain_of_ours_is_put_back_when_a_change_fails(kernel: Kernel) -> None:
    kernel.call(lambda: kernel.engine.apply(REDIRECT))
    tool, _ = kernel.tools()
    rules = (
        ("-m", "comment", "--comment", "by hand"),
        ("-d", "10.9.9.9", "-p", "udp", "-m", "multiport", "!", "--sports", "1,2"),
    )
    for rule in rules:
        kernel.namespace.run(tool, "-t", "nat", "-I", "ISTIO_OUTPUT", *rule, "-j", "RETURN")
    before = kernel.everything()
    with pytest.raises(Unsupported):
        kernel.call(lambda: kernel.engine.apply(broken(TPROXY)))
    assert kernel.everything() == before
    assert any("by hand" in text for text in before)


@each_real_one
def test_an_address_that_was_there_first_serves_and_stays(kernel: Kernel) -> None:
    add_foreign_address(kernel, "::6")
    before = kernel.everything()
    report = kernel.call(lambda: kernel.engine.apply(EVERYTHING))
    assert not report.addressed
    assert not kernel.call(lambda: kernel.engine.apply(EVERYTHING)).changed
    kernel.call(kernel.engine.remove)
    assert kernel.everything() == before


@each_real_one
def test_a_policy_rule_of_a_third_party_that_was_there_first_serves_and_both_stay(kernel: Kernel) -> None:
    empty = kernel.everything()
    for family in ("-4", "-6"):
        kernel.namespace.run("ip", family, "rule", "add", "fwmark", "1337", "lookup", "133", "pref", "50")
    before = kernel.everything()
    assert kernel.call(lambda: kernel.engine.apply(DUAL)).routed
    applied = kernel.everything()
    assert applied not in (before, empty)
    report = kernel.call(lambda: kernel.engine.apply(DUAL))
    assert (report.changed, report.routed) == (False, False)
    assert kernel.everything() == applied
    kernel.call(kernel.engine.remove)
    assert kernel.everything() == before


@each_of_iptables
def test_a_rule_of_any_length_is_taken_and_read_back(kernel: Kernel) -> None:
    plan = Plan("long", (Chain(Family.IPV4, Table.NAT, "ISTIO_OUTPUT", tuple(map(of_words, range(230, 262)))),))
    kernel.call(lambda: kernel.engine.apply(plan))
    assert kernel.holds(plan)


@pytest.mark.parametrize("kernel", ["restore-legacy", "libiptc"], indirect=True)
def test_a_wait_of_no_time_for_the_xtables_lock_is_over_at_once(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    kernel.backend.waits = Waits(lock=0)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockHeld, match="another program holds the xtables lock"):
            kernel.call(lambda: kernel.engine.apply(REDIRECT))
    assert kernel.holds(NOTHING)
    kernel.call(lambda: kernel.engine.apply(REDIRECT))
    assert kernel.holds(REDIRECT)


@pytest.mark.parametrize(("wait", "told"), [(0, "1"), (1, "1"), (7, "7")])
def test_programs_of_iptables_are_never_told_to_wait_for_no_time_which_they_take_for_without_end(
    wait: int, told: str
) -> None:
    need_namespaces()
    said: list[str] = []
    namespace = Namespace()
    backend = RestoreBackend(Variant.NFT, Waits(lock=wait), said.append)
    namespace.call(lambda: Engine(backend).apply(REDIRECT))
    namespace.close()
    lines = [text.splitlines()[0] for text in said if text.startswith("running ") and "-restore" in text]
    assert lines == [f"running {tool}-nft-restore --noflush -w {told}" for tool in ("iptables", "ip6tables")]


@each_real_one
def test_where_ipv6_is_disabled_a_plan_with_ipv6_is_refused_before_anything_is_written(kernel: Kernel) -> None:
    kernel.namespace.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    before = kernel.everything()
    with pytest.raises(Unsupported, match=r"IPv6 is disabled in this network namespace; enable it .*, or leave out"):
        kernel.call(lambda: kernel.engine.apply(DUAL))
    assert kernel.everything() == before
    kernel.call(lambda: kernel.engine.apply(TPROXY))
    kernel.call(kernel.engine.remove)
    assert kernel.everything() == before


def test_a_fake_can_be_told_to_fail_and_then_holds_what_it_held() -> None:
    backend = FakeBackend(broken=frozenset({(Family.IPV4, Table.NAT)}))
    with pytest.raises(Unsupported, match="told to fail in table nat"):
        Engine(backend).apply(TPROXY)
    assert Kernel(backend).holds(NOTHING)


def test_a_family_that_is_missing_is_a_warning_where_the_plan_can_do_without() -> None:
    backend = FakeBackend(missing=frozenset({Family.IPV6}))
    (warning,) = Engine(backend).apply(REDIRECT).warnings
    assert "ipv6" in warning
    assert Kernel(backend).holds(REDIRECT.only((Family.IPV4,)))


@pytest.mark.parametrize(("plan", "families"), [(REDIRECT, (Family.IPV6,)), (DUAL, BOTH)], ids=["by-name", "by-the-plan"])
def test_a_family_that_is_missing_is_an_error_where_it_was_asked_for(plan: Plan, families: tuple[Family, ...]) -> None:
    backend = FakeBackend(missing=frozenset({Family.IPV6}))
    with pytest.raises(Unsupported, match="no ipv6"):
        Engine(backend).apply(plan, families)
    assert Kernel(backend).holds(NOTHING)


@pytest.mark.parametrize("name", ["nftables", "ambient", ""])
def test_a_name_that_no_backend_has_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"is not a backend \(allowed: auto, restore, libiptc, nft\)"):
        open_engine(name)


@pytest.mark.parametrize(
    ("name", "variant", "allowed"),
    [
        ("libiptc", Variant.NFT, r"restore with nft, or libiptc without --iptables-variant"),
        ("nft", Variant.LEGACY, r"restore with legacy, or nft without --iptables-variant"),
    ],
)
def test_a_backend_is_refused_with_a_variant_that_it_does_not_reach(name: str, variant: Variant, allowed: str) -> None:
    with pytest.raises(InvalidInput, match=allowed):
        open_engine(name, variant)
