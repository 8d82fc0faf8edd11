"""Policy routing for TPROXY: rule `fwmark MARK → table TABLE`, and in that table `local default dev lo`.

What is made here carries a protocol number of its own (rtnetlink's `RTPROT_*`, kept by the kernel for routes and, since
Linux 4.17, for rules), which tells it from what others made. What the old script made bears no such sign; it is known by
its mark.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from socket import AF_INET
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from istio_init.errors import NotPermitted, Unsupported
from istio_init.model import NO_MARK, TPROXY_MARK, TPROXY_ROUTE_TABLE, UINT32_MAX, TproxyRoute

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 133  # not one of iproute2's /etc/iproute2/rt_protos
RTN_LOCAL = 2  # linux/rtnetlink.h
RT_SCOPE_UNIVERSE = 0  # linux/rtnetlink.h
RT_SCOPE_HOST = 254  # linux/rtnetlink.h
FR_ACT_TO_TBL = 1  # linux/fib_rules.h
FIB_RULE_INVERT = 2  # linux/fib_rules.h: `ip rule add not …`
MAIN_PRIORITY = 32766  # ip-rule(8)
LOOPBACK = 1  # `lo` is the first interface of every network namespace

OLD_SCRIPTS_DEFAULT = TproxyRoute(TPROXY_MARK, TPROXY_ROUTE_TABLE)

# What a rule has that asks for nothing but a mark; one with more is somebody else's.
PLAIN_ATTRIBUTES = frozenset(
    {"FRA_TABLE", "FRA_FWMARK", "FRA_FWMASK", "FRA_PRIORITY", "FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"}
)


def find(marks: frozenset[int]) -> tuple[TproxyRoute, ...]:
    """List the policy routes of ours, and those of the old script.

    Args:
        marks: marks that the old script is known to have used; a rule for one of them is its rule if it leads to a table
            that delivers everything to this host, and neither is ours.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no policy routing.
    """
    with _netlink() as ipr:
        rules = _rules(ipr)
        found = [_route_of(rule) for rule in rules if not _is_others(rule)]
        # Where a rule of ours has a mark, another one for it is not the old script's.
        marks -= {route.mark for route in found}
        found += [
            route
            for route in map(_route_of, filter(_is_others, rules))
            if (route.mark in marks or route == OLD_SCRIPTS_DEFAULT) and _is_others(_local_default(ipr, route.table))
        ]
        # A route of ours without a rule of ours: what another rule leads to, or what is left when a clean was killed.
        tables = {route.get("table") for route in ipr.get_routes(family=AF_INET) if route["proto"] == PROTOCOL}
        found += [TproxyRoute(NO_MARK, table) for table in tables - {route.table for route in found}]
    return tuple(dict.fromkeys(found))


def add(route: TproxyRoute) -> bool:
    """Make sure of a policy route, and tell whether any part of it was missing.

    The route comes before the rule, so that no packet is sent to an empty table.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no policy routing.
    """
    with _netlink() as ipr:
        route_missing = not _local_default(ipr, route.table)
        rule_missing = route not in (_route_of(rule) for rule in _rules(ipr) if _is_before_main(rule))
        if route_missing:
            ipr.route("add", **_local_default_spec(route.table), proto=PROTOCOL)
        if rule_missing:
            ipr.rule("add", family=AF_INET, fwmark=route.mark, table=route.table, protocol=PROTOCOL)
    return route_missing or rule_missing


def delete(route: TproxyRoute, *, only_ours: bool) -> None:
    """Remove a policy route; its table's default stays while another rule that counts leads there.

    Args:
        route: one that `find` listed, or `add` made.
        only_ours: leave parts that somebody else made.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink() as ipr:
        # The old script made both parts: to a route of ours, rules of others lead for reasons of their own.
        only_ours = only_ours or not _is_others(_local_default(ipr, route.table))
        rules = [rule for rule in _rules(ipr) if _route_of(rule) == route and not (only_ours and _is_others(rule))]
        for rule in rules:
            selectors = {"fwmark": route.mark, "table": route.table, "priority": rule.get("priority")}
            ipr.rule("del", family=AF_INET, protocol=rule.get("protocol"), **selectors)
        default = _local_default(ipr, route.table)
        leading = [rule for rule in _rules(ipr) if rule.get("table") == route.table]
        if _is_others(default):
            unused = any(map(_is_others, rules)) and not leading
        else:
            unused = default is not None and all(map(_is_others, leading))
        if unused:
            ipr.route("del", **_local_default_spec(route.table))


def first_address() -> str:
    """Give this host's first address that is neither loopback nor link-local, or an empty text."""
    with IPRoute() as ipr:
        addresses = [message.get("address") for message in ipr.get_addr() if message["scope"] == RT_SCOPE_UNIVERSE]
    return next((address for address in addresses if address), "")


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            message = "the policy route of TPROXY was refused; give the container the capability NET_ADMIN"
            raise NotPermitted(message) from error
        message = (
            f"the policy route of TPROXY cannot be changed: {error}; it needs policy routing in the kernel "
            "(CONFIG_IP_MULTIPLE_TABLES), and the interface lo up"
        )
        raise Unsupported(message) from error


def _rules(ipr: IPRoute) -> list[Any]:
    """Read the rules that lead to a table and ask for a whole mark, and for nothing else."""
    return [rule for rule in ipr.get_rules(family=AF_INET) if _is_plain(rule)]


def _is_plain(rule: Any) -> bool:  # noqa: ANN401 - pyroute2's messages have no static type
    # The lengths are those of `from` and `to`.
    fields = (rule["action"], rule["flags"] & FIB_RULE_INVERT, rule["src_len"], rule["dst_len"], rule["tos"])
    names = {name for name, _ in rule["attrs"]}
    values = (rule.get("fwmask"), rule.get("suppress_prefixlen"))
    # An absent suppressor reads as all ones.
    return fields == (FR_ACT_TO_TBL, 0, 0, 0, 0) and names <= PLAIN_ATTRIBUTES and values == (UINT32_MAX, UINT32_MAX)


def _is_before_main(rule: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a rule is asked before the table main, which has an answer for every packet."""
    return (rule.get("priority") or 0) < MAIN_PRIORITY


def _is_others(made: Any) -> bool:  # noqa: ANN401 - as above
    """Tell whether a rule or a route is there and was made by somebody else."""
    return made is not None and PROTOCOL not in (made.get("protocol"), made.get("proto"))


def _route_of(rule: Any) -> TproxyRoute:  # noqa: ANN401 - as above
    return TproxyRoute(rule.get("fwmark"), rule.get("table"))


def _local_default(ipr: IPRoute, table: int) -> Any:  # noqa: ANN401 - as above
    """Give the route that delivers everything to this host, or None."""
    routes = ipr.get_routes(family=AF_INET, table=table)
    return next((route for route in routes if route["type"] == RTN_LOCAL and route["dst_len"] == 0), None)


def _local_default_spec(table: int) -> dict[str, Any]:
    return {
        "family": AF_INET,
        "dst": "0.0.0.0/0",
        "type": RTN_LOCAL,
        "scope": RT_SCOPE_HOST,
        "oif": LOOPBACK,
        "table": table,
    }
