"""Our client of rtnetlink, held to pyroute2 and iproute2 in real network namespaces: all three read and write the same."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from socket import AF_APPLETALK, AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from istio_init.core.errors import NotPermitted
from istio_init.rules.kernel import rtnetlink
from istio_init.rules.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Netlink
from istio_init.rules.kernel.nf_tables import chains
from istio_init.rules.kernel.rtnetlink import Address, Route, Rule
from istio_init.rules.model import UINT32_MAX, Family
from tests.cases import APP, ROOT
from tests.netns.namespaces import Namespace
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

LO = 1
FRA = {name: number for number, name, *_ in fibmsg.nla_map}
FAMILIES = {int(AF_INET): "-4", int(AF_INET6): "-6"}
each_family = pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])

# What `ip` is told to make, for both families; {net} is a part of the address space.
RULES = (
    "rule add fwmark 42 lookup 4242",
    "rule add fwmark 42 lookup 4242 pref 0 protocol 133",
    "rule add fwmark 0xffffffff lookup 4294967295 pref 7",
    "rule add fwmark 0x2a/0xff lookup 255 pref 8",
    "rule add fwmark 0/0xff lookup 256 pref 9",
    "rule add fwmark 43 from {net} to {net} iif lo lookup 100 pref 10",
    "rule add not fwmark 44 lookup 100 pref 11",
    "rule add fwmark 45 tos 0x10 lookup 100 pref 12",
    "rule add fwmark 46 lookup 100 suppress_prefixlength 0 pref 13",
    "rule add fwmark 47 lookup 100 suppress_ifgroup 1 pref 14",
    "rule add fwmark 48 uidrange 1-2 lookup 100 pref 15",
    "rule add fwmark 49 ipproto tcp dport 80-90 lookup 100 pref 16",
    "rule add fwmark 50 blackhole pref 17",
    "rule add fwmark 51 goto 32766 pref 18",
)
ROUTES = (
    "route add local default dev lo table 4242",
    "route add local {net} dev lo table 4242 proto 133",
    "route add local default dev lo table 4294967295 proto 133",
    "route add default dev eth0 table 100",
    "route add blackhole {net} table 255 proto static",
    "route add {net} dev eth0 metric 7",
    "route add unreachable default metric 4278198272",
)
ADDRESSES = (
    "address add 192.0.2.1 peer 192.0.2.9/32 dev eth0",
    "address add 127.0.0.2/8 dev lo",
    "address add 169.254.7.7/16 dev eth0",
    "address add ::7/128 dev lo",
    "address add fd77::2/64 dev eth0 nodad",
)
NETS = {int(AF_INET): "198.51.100.0/24", int(AF_INET6): "2001:db8::/32"}


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    need_namespaces()
    namespace = Namespace()
    namespace.run("ip", "-batch", "-", stdin="link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n")
    yield namespace
    namespace.close()


def make(namespace: Namespace, family: int, commands: tuple[str, ...]) -> None:
    script = "\n".join(command.format(net=NETS[family]) for command in commands)
    namespace.run("ip", FAMILIES[family], "-batch", "-", stdin=f"{script}\n")


def ours(namespace: Namespace, function: Callable[[Netlink], Any]) -> Any:
    """Call a function with our client."""

    def ask() -> Any:
        with Netlink(NETLINK_ROUTE) as kernel:
            return function(kernel)

    return namespace.call(ask)


def theirs(namespace: Namespace, function: Callable[[IPRoute], Any]) -> Any:
    """Call a function with pyroute2's."""

    def ask() -> Any:
        with IPRoute() as ipr:
            return function(ipr)

    return namespace.call(ask)


def shown(namespace: Namespace, family: int, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(namespace.run("ip", "-json", "-details", FAMILIES[family], *words).stdout)
    return found


def rule_of(message: Any) -> Rule:
    return Rule(
        message["family"],
        mark=message.get_attr("FRA_FWMARK") or 0,
        mask=message.get_attr("FRA_FWMASK") or 0,
        table=message.get_attr("FRA_TABLE"),
        priority=message.get_attr("FRA_PRIORITY") or 0,
        protocol=message.get_attr("FRA_PROTOCOL"),
        action=message["action"],
        is_inverted=bool(message["flags"] & rtnetlink.FIB_RULE_INVERT),
        destination_length=message["dst_len"],
        source_length=message["src_len"],
        tos=message["tos"],
        suppressor=message.get_attr("FRA_SUPPRESS_PREFIXLEN"),
        attributes=frozenset(FRA[name] for name, _ in message["attrs"]),
    )


def route_of(message: Any) -> Route:
    table = message.get_attr("RTA_TABLE")
    return Route(message["family"], message["dst_len"], table, message["proto"], message["type"])


def address_of(message: Any) -> Address:
    fields = (message["prefixlen"], message["scope"], message["index"], message.get_attr("IFA_PROTO") or 0)
    return Address(message["family"], message.get_attr("IFA_ADDRESS"), *fields)


@each_family
def test_rules_read_as_pyroute2_reads_them(namespace: Namespace, family: int) -> None:
    make(namespace, family, RULES)
    found = ours(namespace, lambda kernel: rtnetlink.rules(kernel, family))
    assert len(found) > len(RULES)  # the kernel has some of its own
    assert found == theirs(namespace, lambda ipr: [rule_of(message) for message in ipr.get_rules(family=family)])


@each_family
def test_routes_read_as_pyroute2_reads_them(namespace: Namespace, family: int) -> None:
    make(namespace, family, ROUTES)
    found = ours(namespace, lambda kernel: rtnetlink.routes(kernel, family))
    assert len(found) > len(ROUTES)
    assert sorted(found) == sorted(
        theirs(namespace, lambda ipr: [route_of(message) for message in ipr.get_routes(family=family)])
    )


@pytest.mark.parametrize("family", [0, AF_INET, AF_INET6], ids=["all", "ipv4", "ipv6"])
def test_addresses_read_as_pyroute2_reads_them(namespace: Namespace, family: int) -> None:
    namespace.run("ip", "-batch", "-", stdin="\n".join(ADDRESSES) + "\n")
    numbered = {"index": LO, "address": "::6", "prefixlen": 128, "proto": 133}  # iproute2 6.1 has no option for it
    theirs(namespace, lambda ipr: ipr.addr("add", **numbered))
    found = ours(namespace, lambda kernel: rtnetlink.addresses(kernel, family))
    messages = theirs(namespace, lambda ipr: list(ipr.get_addr(**({"family": family} if family else {}))))
    assert found == list(map(address_of, messages))
    assert len(found) >= len(ADDRESSES) // 2
    assert {address.family for address in found} == ({family} if family else {AF_INET, AF_INET6})


@each_family
def test_what_pyroute2_makes_is_read_as_it_was_meant(namespace: Namespace, family: int) -> None:
    default = {"dst": "0.0.0.0/0" if family == AF_INET else "::/0", "scope": rtnetlink.RT_SCOPE_HOST, "oif": LO}

    def add(ipr: IPRoute) -> None:
        ipr.rule("add", family=family, table=300, fwmark=0x80000001, priority=5, protocol=133)
        ipr.route("add", family=family, table=300, proto=133, type=rtnetlink.RTN_LOCAL, **default)

    theirs(namespace, add)
    (rule,) = (rule for rule in ours(namespace, lambda kernel: rtnetlink.rules(kernel, family)) if rule.mark)
    assert rule._replace(attributes=frozenset()) == Rule(family, 0x80000001, UINT32_MAX, 300, 5, 133)
    (route,) = (route for route in ours(namespace, lambda kernel: rtnetlink.routes(kernel, family)) if route.table == 300)
    assert route == Route(family, 0, 300, 133, rtnetlink.RTN_LOCAL)


def test_a_long_list_is_read_whole(namespace: Namespace) -> None:
    make(namespace, AF_INET, tuple(f"rule add fwmark {mark} lookup {mark} pref 9" for mark in range(1, 3001)))
    marks = [rule.mark for rule in ours(namespace, lambda kernel: rtnetlink.rules(kernel, AF_INET)) if rule.mark]
    assert marks == list(range(1, 3001))


@each_family
@pytest.mark.parametrize(
    ("mark", "table", "priority"), [(0x2A, 133, 32000), (UINT32_MAX, UINT32_MAX, 1), (1, 256, 0), (0x80000000, 252, 32765)]
)
def test_a_rule_that_we_write_is_read_by_others_as_it_was_meant(
    namespace: Namespace, family: int, mark: int, table: int, priority: int
) -> None:
    before = shown(namespace, family, "rule")
    rule = Rule(family, mark, UINT32_MAX, table, priority, 133)
    ours(namespace, lambda kernel: rtnetlink.add_rule(kernel, rule))
    (found,) = (rule for rule in shown(namespace, family, "rule") if "fwmark" in rule)
    assert (int(found["fwmark"], 16), int(found["table"]), found["priority"]) == (mark, table, priority)
    assert (found["protocol"], found["src"], "not" in found, "fwmask" in found) == ("133", "all", False, False)
    messages = theirs(namespace, lambda ipr: [rule_of(message) for message in ipr.get_rules(family=family)])
    (read,) = (message for message in messages if message.mark)
    assert read._replace(attributes=rule.attributes) == rule
    ours(namespace, lambda kernel: rtnetlink.delete_rule(kernel, rule))
    assert shown(namespace, family, "rule") == before


@each_family
@pytest.mark.parametrize("table", [1, 133, 255, 256, UINT32_MAX])
def test_a_route_that_we_write_is_read_by_others_as_it_was_meant(namespace: Namespace, family: int, table: int) -> None:
    before = shown(namespace, family, "route", "show", "table", "all")
    ours(namespace, lambda kernel: rtnetlink.add_local_default(kernel, family, table, LO, 133))
    (found,) = (route for route in shown(namespace, family, "route", "show", "table", "all") if route not in before)
    fields = {"type": "local", "dst": "default", "dev": "lo", "protocol": "133", "scope": "host"}
    # iproute2 shows no scope of IPv6's routes but global, which is all that they have (net/ipv6/route.c).
    assert found | (fields | {"scope": "global"} if family == AF_INET6 else fields) == found
    messages = theirs(namespace, lambda ipr: [route_of(message) for message in ipr.get_routes(family=family, table=table)])
    assert Route(family, 0, table, 133, rtnetlink.RTN_LOCAL) in messages
    ours(namespace, lambda kernel: rtnetlink.delete_local_default(kernel, family, table, LO))
    assert shown(namespace, family, "route", "show", "table", "all") == before


@pytest.mark.parametrize(("text", "length"), [("::6", 128), ("fd77::1234:0:0:1", 64)])
def test_an_address_that_we_write_is_read_by_others_as_it_was_meant(namespace: Namespace, text: str, length: int) -> None:
    before = shown(namespace, AF_INET6, "address", "show", "dev", "lo")
    address = Address(AF_INET6, text, length, rtnetlink.RT_SCOPE_UNIVERSE, LO, 133)
    ours(namespace, lambda kernel: rtnetlink.add_address(kernel, address))
    (lo,) = shown(namespace, AF_INET6, "address", "show", "dev", "lo")
    (found,) = (one for one in lo["addr_info"] if one["local"] == text)
    assert (found["prefixlen"], found["scope"]) == (length, "global")
    messages = theirs(namespace, lambda ipr: list(ipr.get_addr(family=AF_INET6, index=LO)))
    assert address in map(address_of, messages)
    ours(namespace, lambda kernel: rtnetlink.delete_address(kernel, address))
    assert shown(namespace, AF_INET6, "address", "show", "dev", "lo") == before


RULE = Rule(AF_INET, 0x2A, UINT32_MAX, 4242, 32000, 133)
SOURCE = Address(AF_INET6, "::6", 128, rtnetlink.RT_SCOPE_UNIVERSE, LO, 133)
Change = Callable[..., None]
PAIRS: dict[str, tuple[Change, Change, tuple[Any, ...], int]] = {
    "rule": (rtnetlink.add_rule, rtnetlink.delete_rule, (RULE,), errno.ENOENT),
    "route": (
        lambda kernel, family, table, interface: rtnetlink.add_local_default(kernel, family, table, interface, 133),
        rtnetlink.delete_local_default,
        (AF_INET, 4242, LO),
        errno.ESRCH,
    ),
    "address": (rtnetlink.add_address, rtnetlink.delete_address, (SOURCE,), errno.EADDRNOTAVAIL),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_the_kernel_refuses_is_raised_with_its_own_number(namespace: Namespace, pair: str) -> None:
    add, delete, what, absent = PAIRS[pair]

    def refused(change: Change, owner: tuple[int, int] = ROOT) -> int | None:
        def ask() -> None:
            with Netlink(NETLINK_ROUTE) as kernel:
                change(kernel, *what)

        try:
            namespace.call(ask, owner)
        except OSError as error:
            return error.errno
        return None

    assert (refused(add, APP), refused(delete, APP), refused(delete)) == (errno.EPERM, errno.EPERM, absent)
    ours(namespace, lambda kernel: add(kernel, *what))
    assert refused(add) == errno.EEXIST
    ours(namespace, lambda kernel: delete(kernel, *what))


def test_a_socket_serves_on_after_a_refusal(namespace: Namespace) -> None:
    def ask(kernel: Netlink) -> list[Rule]:
        with pytest.raises(FileNotFoundError):
            rtnetlink.delete_rule(kernel, RULE)
        return rtnetlink.rules(kernel, AF_INET)

    assert ours(namespace, ask) != []


def test_a_family_without_policy_rules_is_refused_at_the_end_of_its_list(namespace: Namespace) -> None:
    with pytest.raises(OSError, match="Address family not supported") as caught:
        ours(namespace, lambda kernel: rtnetlink.rules(kernel, AF_APPLETALK))
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_for_a_family_that_the_kernel_lacks_it_gives_the_routes_of_all_others(namespace: Namespace) -> None:
    found = ours(namespace, lambda kernel: rtnetlink.routes(kernel, AF_APPLETALK))
    assert {route.family for route in found} == {AF_INET, AF_INET6}


def test_chains_of_nf_tables_are_read_by_who_may_and_refused_to_who_may_not(namespace: Namespace) -> None:
    namespace.run("nft", "add table ip one; add chain ip one first; add chain ip one second; add table ip6 two")
    namespace.run("nft", "add chain ip6 two third")
    assert namespace.call(lambda: chains(Family.IPV4)) == {("one", "first"), ("one", "second")}
    assert namespace.call(lambda: chains(Family.IPV6)) == {("two", "third")}
    with pytest.raises(NotPermitted, match="the chains of nf_tables for ipv4 cannot be read"):
        namespace.call(lambda: chains(Family.IPV4), APP)


def test_a_part_of_the_kernel_that_it_lacks_is_an_error() -> None:
    with pytest.raises(OSError, match="Protocol not supported"):
        Netlink(NETLINK_NETFILTER + 1000)
