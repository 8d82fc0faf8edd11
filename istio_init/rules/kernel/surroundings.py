"""What a plan needs besides rules: the policy routes of TPROXY, and addresses of lo.

A policy route is a rule `fwmark MARK → table TABLE`, and in that table `local default dev lo`, for one family.

What is made here carries a protocol number of its own (rtnetlink's `RTPROT_*` and `IFAPROT_*`), which tells it from what
others made; the kernel keeps it for routes, since Linux 4.17 for rules, and since 5.18 for addresses. What Istio's own
tools made bears no such sign: their policy routes are known by their mark; their address, `::6/128`, could be anybody's,
and stays.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from istio_init.core.errors import NotPermitted, Unsupported
from istio_init.rules.kernel.remedies import OTHER_REFUSAL, missing_capability
from istio_init.rules.model import (
    ANY_IPV4,
    ANY_IPV6,
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
RTN_LOCAL = 2  # linux/rtnetlink.h
RT_SCOPE_UNIVERSE = 0  # linux/rtnetlink.h
RT_SCOPE_HOST = 254  # linux/rtnetlink.h
FR_ACT_TO_TBL = 1  # linux/fib_rules.h
FIB_RULE_INVERT = 2  # linux/fib_rules.h: `ip rule add not …`
MAIN_PRIORITY = 32766  # ip-rule(8)
LOOPBACK = 1  # `lo` is the first interface of every network namespace
ADDRESS_FAMILIES = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
FAMILIES = {number: family for family, number in ADDRESS_FAMILIES.items()}
ANYWHERE = {Family.IPV4: ANY_IPV4, Family.IPV6: ANY_IPV6}
IPV6_SWITCH = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"

# What a rule has that asks for nothing but a mark; one with more is somebody else's.
PLAIN_ATTRIBUTES = frozenset(
    {"FRA_TABLE", "FRA_FWMARK", "FRA_FWMASK", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"}
)

# What is changed, and what the kernel must have for it.
POLICY_ROUTE = "the policy route of TPROXY"
FOR_A_ROUTE = (
    "policy routing in the kernel (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES), and the interface lo up"
)
FOR_AN_ADDRESS = "IPv6 in the kernel"


def find(marks: Marks) -> tuple[TproxyRoute, ...]:
    """List the policy routes of ours, and those of Istio's own tools, IPv4 first.

    Args:
        marks: marks that those tools are known to have used; a rule for one of them is theirs if it leads to a table that
            delivers everything to this host, and neither is ours.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink(POLICY_ROUTE, FOR_A_ROUTE) as ipr:
        found = [route for family in Family for route in _find(ipr, family, marks)]
    return tuple(dict.fromkeys(found))


def _find(ipr: IPRoute, family: Family, marks: Marks) -> list[TproxyRoute]:
    rules = _rules(ipr, family)
    found = [_route_of(rule) for rule in rules if not _is_others(rule)]
    # Where a rule of ours has a mark, another one for it is not Istio's.
    marks -= {(family, route.mark) for route in found}
    found += [
        route
        for route in map(_route_of, filter(_is_others, rules))
        if _is_istios(route, marks) and _is_others(_local_default(ipr, route))
    ]
    # A route of ours without a rule of ours: what another rule leads to, or what is left when a clean was killed.
    tables = {route.get("table") for route in _routes(ipr, family) if route["proto"] == PROTOCOL}
    return found + [TproxyRoute(NO_MARK, table, family) for table in tables - {route.table for route in found}]


def add(route: TproxyRoute) -> bool:
    """Make sure of a policy route, and tell whether any part of it was missing.

    The route comes before the rule, so that no packet is sent to an empty table.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no policy routing, or no IPv6 here.
    """
    with _netlink(POLICY_ROUTE, FOR_A_ROUTE) as ipr:
        route_missing = _local_default(ipr, route) is None
        rule_missing = route not in (_route_of(rule) for rule in _rules(ipr, route.family) if _is_before_main(rule))
        if route_missing:
            ipr.route("add", **_local_default_spec(route), proto=PROTOCOL)
        if rule_missing:
            ipr.rule("add", **_rule_spec(route), protocol=PROTOCOL)
    return route_missing or rule_missing


def delete(route: TproxyRoute, *, only_ours: bool) -> None:
    """Remove a policy route; its table's default stays while another rule that counts leads there.

    Args:
        route: one that `find` listed, or `add` made.
        only_ours: leave parts that somebody else made.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink(POLICY_ROUTE, FOR_A_ROUTE) as ipr:
        # Istio's tools make both parts: to a route of ours, rules of others lead for reasons of their own.
        only_ours = only_ours or not _is_others(_local_default(ipr, route))
        plain = _rules(ipr, route.family)
        rules = [rule for rule in plain if _route_of(rule) == route and not (only_ours and _is_others(rule))]
        for rule in rules:
            ipr.rule("del", **_rule_spec(route), priority=rule.get("priority"), protocol=rule.get("protocol"))
        default = _local_default(ipr, route)
        leading = [rule for rule in _rules(ipr, route.family) if rule.get("table") == route.table]
        if _is_others(default):
            unused = any(map(_is_others, rules)) and not leading
        else:
            unused = default is not None and all(map(_is_others, leading))
        if unused:
            ipr.route("del", **_local_default_spec(route))


def addresses() -> tuple[str, ...]:
    """List the addresses of lo that are ours, as CIDRs.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink("addresses of lo", FOR_AN_ADDRESS) as ipr:
        found = _addresses_of_lo(ipr)
    # `::1` shows whether this kernel, and this pyroute2, know protocol numbers of addresses. Where they do not, `::6` itself
    # tells: nobody but Istio uses it.
    if any(address.get("proto") for address in found):
        ours = [address for address in found if address.get("proto") == PROTOCOL]
    else:
        ours = [address for address in found if _cidr_of(address) == PROXY_SOURCE_IPV6]
    return tuple(map(_cidr_of, ours))


def add_address(cidr: str) -> bool:
    """Make sure that lo has an IPv6 address, and tell whether it was missing.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no IPv6 here.
    """
    address, _, prefix = cidr.partition("/")
    with _netlink(f"the address {cidr} of lo", FOR_AN_ADDRESS) as ipr:
        missing = address not in (found.get("address") for found in _addresses_of_lo(ipr))
        if missing:
            ipr.addr("add", index=LOOPBACK, address=address, prefixlen=int(prefix), family=AF_INET6, proto=PROTOCOL)
    return missing


def delete_address(cidr: str) -> None:
    """Take an address that `addresses` listed, or `add_address` added, from lo.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    address, _, prefix = cidr.partition("/")
    with _netlink(f"the address {cidr} of lo", FOR_AN_ADDRESS) as ipr:
        ipr.addr("del", index=LOOPBACK, address=address, prefixlen=int(prefix), family=AF_INET6)


def first_address() -> str:
    """Give this host's first address that is neither of lo nor link-local, or an empty text."""
    with IPRoute() as ipr:
        messages = [message for message in ipr.get_addr() if message["index"] != LOOPBACK]
    found = [message.get("address") for message in messages if message["scope"] == RT_SCOPE_UNIVERSE]
    return next((address for address in found if address), "")


@contextmanager
def _netlink(what: str, needs: str) -> Iterator[IPRoute]:
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        if error.code == errno.EACCES and _is_ipv6_disabled():
            message = (
                f"{what} is not possible: IPv6 is disabled in this network namespace; enable it "
                "(sysctl net.ipv6.conf.all.disable_ipv6=0), or leave out --dual-stack"
            )
            raise Unsupported(message) from error
        if error.code in (errno.EPERM, errno.EACCES):
            remedy = missing_capability() or OTHER_REFUSAL
            raise NotPermitted(f"{what} was refused: {os.strerror(error.code)}; {remedy}") from error
        raise Unsupported(f"{what} cannot be changed: {error}; it needs {needs}") from error


def _is_ipv6_disabled() -> bool:
    try:
        with open(IPV6_SWITCH, encoding="ascii") as switch:
            return switch.read().strip() != "0"
    except OSError:  # no /proc here, or a kernel without IPv6, which says so in other words
        return False


def _rules(ipr: IPRoute, family: Family) -> list[Any]:
    """Read the rules that lead to a table and ask for a whole mark, and for nothing else."""
    try:
        return [rule for rule in ipr.get_rules(family=ADDRESS_FAMILIES[family]) if _is_plain(rule)]
    except NetlinkError as error:
        if error.code != errno.EAFNOSUPPORT:
            raise
        return []  # this kernel has no such family, or no policy routing for it


def _routes(ipr: IPRoute, family: Family, **selectors: int) -> list[Any]:
    """Read routes; a kernel that lacks a family answers with those of all others."""
    number = ADDRESS_FAMILIES[family]
    return [route for route in ipr.get_routes(family=number, **selectors) if route["family"] == number]


def _addresses_of_lo(ipr: IPRoute) -> list[Any]:
    return [address for address in ipr.get_addr(family=AF_INET6, index=LOOPBACK) if address["family"] == AF_INET6]


def _cidr_of(address: Any) -> str:
    return f"{address.get('address')}/{address['prefixlen']}"


def _is_plain(rule: Any) -> bool:
    # The lengths are those of `from` and `to`.
    fields = (rule["action"], rule["flags"] & FIB_RULE_INVERT, rule["src_len"], rule["dst_len"], rule["tos"])
    names = {name for name, _ in rule["attrs"]}
    values = (rule.get("fwmask"), rule.get("suppress_prefixlen"))
    # An absent suppressor reads as all ones.
    return fields == (FR_ACT_TO_TBL, 0, 0, 0, 0) and names <= PLAIN_ATTRIBUTES and values == (UINT32_MAX, UINT32_MAX)


def _is_before_main(rule: Any) -> bool:
    """Tell whether a rule is asked before the table main, which has an answer for every packet."""
    return (rule.get("priority") or 0) < MAIN_PRIORITY


def _is_others(made: Any) -> bool:
    """Tell whether a rule or a route is there and was made by somebody else."""
    return made is not None and PROTOCOL not in (made.get("protocol"), made.get("proto"))


def _is_istios(route: TproxyRoute, marks: Marks) -> bool:
    """Tell whether Istio's own tools may have made a rule that is not ours: its mark is known, or it is their default."""
    return (route.family, route.mark) in marks or (route.mark, route.table) == (TPROXY_MARK, TPROXY_ROUTE_TABLE)


def _route_of(rule: Any) -> TproxyRoute:
    return TproxyRoute(rule.get("fwmark"), rule.get("table"), FAMILIES[rule["family"]])


def _local_default(ipr: IPRoute, wanted: TproxyRoute) -> Any:
    """Give the route that delivers everything to this host, or None."""
    routes = _routes(ipr, wanted.family, table=wanted.table)
    return next((route for route in routes if route["type"] == RTN_LOCAL and route["dst_len"] == 0), None)


def _rule_spec(route: TproxyRoute) -> dict[str, Any]:
    return {"family": ADDRESS_FAMILIES[route.family], "fwmark": route.mark, "table": route.table}


def _local_default_spec(route: TproxyRoute) -> dict[str, Any]:
    return {
        "family": ADDRESS_FAMILIES[route.family],
        "dst": ANYWHERE[route.family],
        "type": RTN_LOCAL,
        "scope": RT_SCOPE_HOST,
        "oif": LOOPBACK,
        "table": route.table,
    }
