"""What a plan needs besides rules: the policy routes of TPROXY, and addresses of lo.

A policy route is a rule `fwmark MARK → table TABLE`, and the route `local default dev lo` in that table, for one family.

Everything added here carries our own protocol number (rtnetlink's `RTPROT_*` and `IFAPROT_*`), to distinguish it from what
third parties added. The kernel stores it for routes, for rules since Linux 4.17, and for addresses since 5.18. Istio's own
tools set no such number: their policy routes are recognised by the mark; their address `::6/128` could belong to anyone, and
is kept.
"""

from __future__ import annotations

import errno

from istio_init.core.errors import NotPermitted, Unsupported
from istio_init.core.light import TYPE_CHECKING, contextmanager
from istio_init.rules.kernel import rtnetlink
from istio_init.rules.kernel.netlink import NETLINK_ROUTE, Netlink, ReadError
from istio_init.rules.kernel.remedies import remedy_for_refusal
from istio_init.rules.kernel.rtnetlink import Address, Route, Rule
from istio_init.rules.model import (
    NO_MARK,
    PROXY_SOURCE_IPV6,
    TPROXY_MARK,
    TPROXY_ROUTE_TABLE,
    UINT32_MAX,
    Family,
    TproxyRoute,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.model import Marks

PROTOCOL = 133  # not one of iproute2's /etc/iproute2/rt_protos and rt_addrprotos
PRIORITY = 32000  # before the table main, but after the priorities in common use
MAIN_PRIORITY = 32766  # ip-rule(8)
LOOPBACK = 1  # `lo` is the first interface of every network namespace
ADDRESS_FAMILIES = {Family.IPV4: 2, Family.IPV6: 10}  # linux/socket.h: AF_INET, AF_INET6
FAMILIES = {number: family for family, number in ADDRESS_FAMILIES.items()}
IPV6_SWITCH = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"

# The attributes of a rule whose only selector is a mark; a rule with others is not ours.
PLAIN_ATTRIBUTES = frozenset(
    {
        rtnetlink.FRA_TABLE,
        rtnetlink.FRA_FWMARK,
        rtnetlink.FRA_FWMASK,
        rtnetlink.FRA_PRIORITY,
        rtnetlink.FRA_PROTOCOL,
        rtnetlink.FRA_SUPPRESS_PREFIXLEN,
    }
)

# For error messages: what is changed, and what it requires.
POLICY_ROUTE = "the policy route of TPROXY"
FOR_A_ROUTE = (
    "policy routing in the kernel (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES), and the interface lo up"
)
FOR_AN_ADDRESS = "IPv6 in the kernel"


def find(marks: Marks) -> tuple[TproxyRoute, ...]:
    """List our policy routes and those of Istio's own tools, IPv4 first.

    Args:
        marks: marks that those tools are known to have used. A rule for one of them counts as theirs if its table delivers
            everything to this host, and neither the rule nor that route is ours.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink(POLICY_ROUTE, FOR_A_ROUTE) as kernel:
        found = [route for family in Family for route in _find(kernel, family, marks)]
    return tuple(dict.fromkeys(found))


def _find(kernel: Netlink, family: Family, marks: Marks) -> list[TproxyRoute]:
    rules = _rules(kernel, family)
    found = [_route_of(rule) for rule in rules if not _is_others(rule)]
    # If one of our rules uses a mark, third-party rules for that mark are not Istio's.
    marks -= {(family, route.mark) for route in found}
    found += [
        route
        for route in map(_route_of, filter(_is_others, rules))
        if _is_istios(route, marks) and _is_others(_local_default(kernel, route))
    ]
    # Our route without our rule: a third-party rule uses it, or a cleanup was killed halfway.
    tables = {route.table for route in _routes(kernel, family) if route.protocol == PROTOCOL}
    return found + [TproxyRoute(NO_MARK, table, family) for table in tables - {route.table for route in found}]


def add(route: TproxyRoute) -> bool:
    """Ensure that a policy route exists; return whether any part of it was missing.

    The route is added before the rule, so that no packet is looked up in an empty table.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no policy routing, or no IPv6 here.
    """
    with _netlink(POLICY_ROUTE, FOR_A_ROUTE) as kernel:
        route_missing = _local_default(kernel, route) is None
        rule_missing = route not in (_route_of(rule) for rule in _rules(kernel, route.family) if _is_before_main(rule))
        if route_missing:
            rtnetlink.add_local_default(kernel, ADDRESS_FAMILIES[route.family], route.table, LOOPBACK, PROTOCOL)
        if rule_missing:
            rtnetlink.add_rule(kernel, _rule_for(route))
    return route_missing or rule_missing


def delete(route: TproxyRoute, *, only_ours: bool) -> None:
    """Remove a policy route: its rule, and the default route of its table unless another rule still needs that.

    A default route of ours is needed by a rule of ours; a third-party one by any rule.

    Args:
        route: one that `find` returned or `add` added.
        only_ours: keep the parts that third parties added.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink(POLICY_ROUTE, FOR_A_ROUTE) as kernel:
        # Istio's tools add both parts, so third-party rules that use our route are not theirs.
        # Without a mark, this is a route of ours that only third-party rules use.
        only_ours = only_ours or route.mark == NO_MARK or not _is_others(_local_default(kernel, route))
        plain = _rules(kernel, route.family)
        rules = [rule for rule in plain if _route_of(rule) == route and not (only_ours and _is_others(rule))]
        for rule in rules:
            rtnetlink.delete_rule(kernel, rule)
        default = _local_default(kernel, route)
        leading = [rule for rule in _rules(kernel, route.family) if rule.table == route.table]
        if _is_others(default):
            unused = any(map(_is_others, rules)) and not leading
        else:
            unused = default is not None and all(map(_is_others, leading))
        if unused:
            rtnetlink.delete_local_default(kernel, ADDRESS_FAMILIES[route.family], route.table, LOOPBACK)


def addresses() -> tuple[str, ...]:
    """List the addresses of lo that are ours, as CIDRs.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink("addresses of lo", FOR_AN_ADDRESS) as kernel:
        found = _addresses_of_lo(kernel)
    # `::1` shows whether this kernel stores protocol numbers of addresses. If it does not, `::6` counts as ours: only Istio
    # uses it.
    if any(address.protocol for address in found):
        ours = [address for address in found if address.protocol == PROTOCOL]
    else:
        ours = [address for address in found if _cidr_of(address) == PROXY_SOURCE_IPV6]
    return tuple(map(_cidr_of, ours))


def add_address(cidr: str) -> bool:
    """Ensure that lo has an IPv6 address; return whether it was missing.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no IPv6 here.
    """
    address = _address_of_lo(cidr)
    with _netlink(f"the address {cidr} of lo", FOR_AN_ADDRESS) as kernel:
        missing = address.text not in (found.text for found in _addresses_of_lo(kernel))
        if missing:
            rtnetlink.add_address(kernel, address)
    return missing


def delete_address(cidr: str) -> None:
    """Remove from lo an address that `addresses` returned or `add_address` added.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink(f"the address {cidr} of lo", FOR_AN_ADDRESS) as kernel:
        rtnetlink.delete_address(kernel, _address_of_lo(cidr))


def first_address() -> str:
    """Return this host's first address that is neither on lo nor link-local, or ""."""
    with Netlink(NETLINK_ROUTE) as kernel:
        found = [address for address in rtnetlink.addresses(kernel) if address.interface != LOOPBACK]
    return next((one.text for one in found if one.text and one.scope == rtnetlink.RT_SCOPE_UNIVERSE), "")


@contextmanager
def _netlink(what: str, needs: str) -> Iterator[Netlink]:
    try:
        with Netlink(NETLINK_ROUTE) as kernel:
            yield kernel
    except ReadError as error:
        raise Unsupported(f"{what}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EACCES and _is_ipv6_disabled():
            message = (
                f"{what} is not possible, because IPv6 is disabled in this network namespace; enable it "
                "(sysctl net.ipv6.conf.all.disable_ipv6=0), or leave out --dual-stack"
            )
            raise Unsupported(message) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            remedy = remedy_for_refusal()
            raise NotPermitted(f"{what} was refused: {error.strerror}; {remedy}") from error
        raise Unsupported(f"{what} cannot be changed: {error.strerror}; it needs {needs}") from error


def _is_ipv6_disabled() -> bool:
    try:
        with open(IPV6_SWITCH, encoding="ascii") as switch:
            return switch.read().strip() != "0"
    except OSError:  # no /proc, or a kernel without IPv6, which fails with another error
        return False


def _rules(kernel: Netlink, family: Family) -> list[Rule]:
    """Read the rules that look up a table and whose only selector is a mark, without a mask."""
    try:
        return [rule for rule in rtnetlink.rules(kernel, ADDRESS_FAMILIES[family]) if _is_plain(rule)]
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return []  # this kernel lacks the family, or policy routing for it


def _routes(kernel: Netlink, family: Family) -> list[Route]:
    """Read the routes of a family; filtered, because a kernel without the family returns those of all others."""
    number = ADDRESS_FAMILIES[family]
    return [route for route in rtnetlink.routes(kernel, number) if route.family == number]


def _addresses_of_lo(kernel: Netlink) -> list[Address]:
    """Read the IPv6 addresses of lo; filtered, because a kernel without IPv6 returns those of other families."""
    number = ADDRESS_FAMILIES[Family.IPV6]
    return [one for one in rtnetlink.addresses(kernel, number) if (one.family, one.interface) == (number, LOOPBACK)]


def _address_of_lo(cidr: str) -> Address:
    text, _, prefix = cidr.partition("/")
    return Address(ADDRESS_FAMILIES[Family.IPV6], text, int(prefix), rtnetlink.RT_SCOPE_UNIVERSE, LOOPBACK, PROTOCOL)


def _cidr_of(address: Address) -> str:
    return f"{address.text}/{address.prefix_length}"


def _is_plain(rule: Rule) -> bool:
    wanted = Rule(rule.family, rule.mark, UINT32_MAX, rule.table, rule.priority, rule.protocol)
    return rule.attributes <= PLAIN_ATTRIBUTES and rule._replace(attributes=wanted.attributes) == wanted


def _is_before_main(rule: Rule) -> bool:
    """Return whether a rule takes precedence over the table main, which has a route for every packet."""
    return rule.priority < MAIN_PRIORITY


def _is_others(part: Rule | Route | None) -> bool:
    """Return whether a rule or route exists and was added by a third party."""
    return part is not None and part.protocol != PROTOCOL


def _is_istios(route: TproxyRoute, marks: Marks) -> bool:
    """Return whether a rule may be from Istio's own tools: its mark is one of theirs, or mark and table are the defaults."""
    return (route.family, route.mark) in marks or (route.mark, route.table) == (TPROXY_MARK, TPROXY_ROUTE_TABLE)


def _route_of(rule: Rule) -> TproxyRoute:
    return TproxyRoute(rule.mark, rule.table, FAMILIES[rule.family])


def _rule_for(route: TproxyRoute) -> Rule:
    return Rule(ADDRESS_FAMILIES[route.family], route.mark, UINT32_MAX, route.table, PRIORITY, PROTOCOL)


def _local_default(kernel: Netlink, wanted: TproxyRoute) -> Route | None:
    """Return the route of the table that delivers everything to this host, or None."""
    local = (wanted.table, rtnetlink.RTN_LOCAL, 0)
    routes = _routes(kernel, wanted.family)
    return next((route for route in routes if (route.table, route.kind, route.destination_length) == local), None)
