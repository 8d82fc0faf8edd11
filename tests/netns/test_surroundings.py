"""Policy routes and addresses of lo, with a real kernel: what is ours is told from what others made, in both families."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import NotPermitted, Unsupported
from istio_init.rules.kernel import surroundings
from istio_init.rules.model import NO_MARK, Family, TproxyRoute
from tests.cases import APP
from tests.netns.namespaces import Namespace
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

each_family = pytest.mark.parametrize("family", Family)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    need_namespaces()
    namespace = Namespace()
    namespace.run("ip", "link", "set", "lo", "up")
    yield namespace
    namespace.close()


def ip_of(namespace: Namespace, family: Family) -> Callable[[str], str]:
    """Give the system's own tool for one family; it takes its words as one text."""
    version = "-4" if family is Family.IPV4 else "-6"
    return lambda words: namespace.run("ip", version, *words.split()).stdout


def shown(namespace: Namespace) -> list[str]:
    return [namespace.run("ip", version, *what).stdout for version in ("-4", "-6") for what in (("rule",), ALL_ROUTES)]


ALL_ROUTES = ("route", "show", "table", "all")


@each_family
def test_what_is_made_is_found_by_its_number_and_taken_away_whole(namespace: Namespace, family: Family) -> None:
    before, ip, route = shown(namespace), ip_of(namespace, family), TproxyRoute(0x2A, 4242, family)
    assert namespace.call(lambda: surroundings.add(route))
    assert "fwmark 0x2a lookup 4242 proto 133" in ip("rule")
    assert "local default dev lo proto 133" in ip("route show table 4242")
    assert not namespace.call(lambda: surroundings.add(route))
    assert namespace.call(lambda: surroundings.find(frozenset())) == (route,)
    namespace.call(lambda: surroundings.delete(route, only_ours=False))
    assert shown(namespace) == before


@each_family
@pytest.mark.parametrize("route", [TproxyRoute(1337, 133), TproxyRoute(0x2A, 4242)], ids=["default", "by-its-mark"])
def test_a_policy_route_of_istios_own_tools_is_found_and_taken_away(
    namespace: Namespace, family: Family, route: TproxyRoute
) -> None:
    before, ip, theirs = shown(namespace), ip_of(namespace, family), route._replace(family=family)
    ip(f"rule add fwmark {theirs.mark} lookup {theirs.table}")
    ip(f"route add local default dev lo table {theirs.table}")
    assert namespace.call(lambda: surroundings.find(frozenset({(family, theirs.mark)}))) == (theirs,)
    assert not namespace.call(lambda: surroundings.add(theirs))
    namespace.call(lambda: surroundings.delete(theirs, only_ours=False))
    assert shown(namespace) == before


@each_family
def test_a_mark_that_is_known_in_one_family_tells_nothing_in_the_other(namespace: Namespace, family: Family) -> None:
    ip = ip_of(namespace, family)
    ip("rule add fwmark 42 lookup 4242")
    ip("route add local default dev lo table 4242")
    (other,) = (one for one in Family if one is not family)
    assert namespace.call(lambda: surroundings.find(frozenset({(other, 42)}))) == ()


@each_family
@pytest.mark.parametrize(
    "rule",
    [
        "fwmark 0x2a/0xff lookup 4242",
        "iif lo fwmark 0x2a lookup 4242",
        "not fwmark 0x2a lookup 4242",
        "fwmark 0x2a lookup 4242 suppress_prefixlength 0",
    ],
    ids=["masked", "interface", "inverted", "suppressed"],
)
def test_a_rule_of_others_that_asks_for_more_is_neither_found_nor_relied_on(
    namespace: Namespace, family: Family, rule: str
) -> None:
    ip, route = ip_of(namespace, family), TproxyRoute(0x2A, 4242, family)
    ip(f"rule add {rule}")
    ip("route add local default dev lo table 4242")
    before = shown(namespace)
    assert namespace.call(lambda: surroundings.find(frozenset({(family, 0x2A)}))) == ()
    assert namespace.call(lambda: surroundings.add(route))
    namespace.call(lambda: surroundings.delete(route, only_ours=True))
    assert shown(namespace) == before


@each_family
@pytest.mark.parametrize(("priority", "serves"), [("1", True), ("32765", True), ("32766", False), ("32767", False)])
def test_a_rule_of_others_is_relied_on_only_where_it_comes_before_the_table_main(
    namespace: Namespace, family: Family, priority: str, *, serves: bool
) -> None:
    ip, route = ip_of(namespace, family), TproxyRoute(0x2A, 4242, family)
    ip(f"rule add fwmark 0x2a lookup 4242 pref {priority}")
    ip("route add local default dev lo table 4242")
    before = shown(namespace)
    assert namespace.call(lambda: surroundings.add(route)) is not serves
    assert ("fwmark 0x2a lookup 4242 proto 133" in ip("rule")) is not serves
    assert namespace.call(lambda: not surroundings.add(route))
    namespace.call(lambda: surroundings.delete(route, only_ours=True))
    assert shown(namespace) == before


@each_family
def test_the_default_of_istios_own_tools_stays_while_another_rule_leads_there(namespace: Namespace, family: Family) -> None:
    ip, theirs = ip_of(namespace, family), TproxyRoute(0x2A, 4242, family)
    ip("rule add fwmark 0x2b lookup 4242")
    ip("route add local default dev lo table 4242")
    before = shown(namespace)
    ip("rule add fwmark 0x2a lookup 4242")
    assert namespace.call(lambda: surroundings.find(frozenset({(family, 0x2A)}))) == (theirs,)
    namespace.call(lambda: surroundings.delete(theirs, only_ours=False))
    assert shown(namespace) == before


@each_family
def test_a_default_of_ours_stays_while_another_rule_of_ours_leads_there_and_goes_with_the_last(
    namespace: Namespace, family: Family
) -> None:
    ip = ip_of(namespace, family)
    ip("rule add fwmark 0x2c lookup 4242")  # it comes to nothing without our route, as before
    before = shown(namespace)
    one, other = TproxyRoute(0x2A, 4242, family), TproxyRoute(0x2B, 4242, family)
    for route in (one, other):
        assert namespace.call(lambda route=route: surroundings.add(route))  # type: ignore[misc] # a plain closure
    namespace.call(lambda: surroundings.delete(one, only_ours=False))
    assert "local default dev lo proto 133" in ip("route show table 4242")
    assert namespace.call(lambda: surroundings.find(frozenset())) == (other,)
    namespace.call(lambda: surroundings.delete(other, only_ours=False))
    assert shown(namespace) == before


@each_family
def test_with_only_ours_no_part_of_a_third_party_is_removed(namespace: Namespace, family: Family) -> None:
    ip, route = ip_of(namespace, family), TproxyRoute(0x2A, 4242, family)
    ip("rule add fwmark 0x2a lookup 4242")
    ip("route add local default dev lo table 4242")
    before = shown(namespace)
    namespace.call(lambda: surroundings.delete(route, only_ours=True))
    assert shown(namespace) == before


@each_family
def test_where_a_rule_of_ours_has_the_mark_another_one_for_it_is_a_third_partys(
    namespace: Namespace, family: Family
) -> None:
    ip, ours = ip_of(namespace, family), TproxyRoute(0x2A, 4242, family)
    ip("rule add fwmark 0x2a lookup 200")
    ip("route add local default dev lo table 200")
    known = frozenset({(family, 0x2A)})
    assert namespace.call(lambda: surroundings.find(known)) == (TproxyRoute(0x2A, 200, family),)
    namespace.call(lambda: surroundings.add(ours))
    assert namespace.call(lambda: surroundings.find(known)) == (ours,)


@each_family
def test_a_route_that_a_killed_clean_left_is_found(namespace: Namespace, family: Family) -> None:
    before, ip = shown(namespace), ip_of(namespace, family)
    namespace.call(lambda: surroundings.add(TproxyRoute(0x2A, 4242, family)))
    ip("rule del fwmark 0x2a lookup 4242")
    left = TproxyRoute(NO_MARK, 4242, family)
    assert namespace.call(lambda: surroundings.find(frozenset())) == (left,)
    namespace.call(lambda: surroundings.delete(left, only_ours=False))
    assert shown(namespace) == before


def test_only_an_address_with_our_number_is_ours(namespace: Namespace) -> None:
    namespace.run("ip", "address", "add", "::7/128", "dev", "lo")
    assert namespace.call(lambda: surroundings.add_address("::6/128"))
    assert namespace.call(surroundings.addresses) == ("::6/128",)
    namespace.call(lambda: surroundings.delete_address("::6/128"))
    namespace.run("ip", "address", "add", "::6/128", "dev", "lo")
    assert not namespace.call(lambda: surroundings.add_address("::6/128"))
    assert namespace.call(surroundings.addresses) == ()


def test_the_first_address_is_not_one_of_lo(namespace: Namespace) -> None:
    namespace.call(lambda: surroundings.add_address("::6/128"))
    assert namespace.call(surroundings.first_address) == ""
    namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    namespace.run("ip", "address", "add", "fd77::2/64", "dev", "eth0")
    namespace.run("ip", "link", "set", "eth0", "up")
    assert namespace.call(surroundings.first_address) == "fd77::2"


@pytest.mark.parametrize(
    "change",
    [
        lambda: surroundings.add_address("::6/128"),
        lambda: surroundings.add(TproxyRoute(1, 2, Family.IPV4)),
        lambda: surroundings.add(TproxyRoute(1, 2, Family.IPV6)),
    ],
    ids=["address", "ipv4-route", "ipv6-route"],
)
def test_who_may_not_change_it_is_told_what_is_missing(namespace: Namespace, change: Callable[[], bool]) -> None:
    before = shown(namespace)
    with pytest.raises(NotPermitted, match=r"was refused: Operation not permitted; run as root \(runAsUser: 0\)"):
        namespace.call(change, APP)
    assert shown(namespace) == before


@pytest.mark.parametrize(
    "change",
    [lambda: surroundings.add_address("::6/128"), lambda: surroundings.add(TproxyRoute(1, 2, Family.IPV6))],
    ids=["address", "route"],
)
def test_where_ipv6_is_disabled_that_is_told(namespace: Namespace, change: Callable[[], bool]) -> None:
    namespace.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
    before = shown(namespace)
    with pytest.raises(Unsupported, match="IPv6 is disabled in this network namespace; enable it"):
        namespace.call(change)
    assert shown(namespace) == before
    assert namespace.call(lambda: (surroundings.find(frozenset()), surroundings.addresses())) == ((), ())
    assert namespace.call(lambda: surroundings.add(TproxyRoute(1, 2, Family.IPV4)))
