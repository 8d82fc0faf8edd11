"""Policy routing for TPROXY: rule `fwmark MARK → table TABLE`, and in that table `local default dev lo`.

What is made here carries a protocol number of its own (rtnetlink's `RTPROT_*`, kept by the kernel for routes and, since
Linux 4.17, for rules), so that `find` knows it whatever mark and table were asked for.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from socket import AF_INET
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from istio_init.errors import NotPermitted, Unsupported
from istio_init.model import TPROXY_MARK, TPROXY_ROUTE_TABLE, UINT32_MAX, TproxyRoute

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL = 133  # not one of iproute2's /etc/iproute2/rt_protos
RTN_LOCAL = 2  # linux/rtnetlink.h
RT_SCOPE_HOST = 254  # linux/rtnetlink.h
LOOPBACK = 1  # `lo` is the first interface of every network namespace

# What the old script made, with its default mark and table and without a protocol number of its own.
OLD_SCRIPTS_ROUTE = TproxyRoute(TPROXY_MARK, TPROXY_ROUTE_TABLE)


def find() -> tuple[TproxyRoute, ...]:
    """List the policy routes of ours, and the old script's default one.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no policy routing.
    """
    with _netlink() as ipr:
        found = {_route_of(rule): rule.get("protocol") for rule in _rules(ipr)}
        ours = [route for route, protocol in found.items() if protocol == PROTOCOL]
        # Of the old script's a half may be left; a table that another rule leads to is that rule's.
        half = TPROXY_ROUTE_TABLE not in {route.table for route in found} and _local_default(ipr, TPROXY_ROUTE_TABLE)
        if OLD_SCRIPTS_ROUTE not in ours and (OLD_SCRIPTS_ROUTE in found or half):
            ours.append(OLD_SCRIPTS_ROUTE)
    return tuple(ours)


def add(route: TproxyRoute) -> bool:
    """Make sure of a policy route, and tell whether any part of it was missing.

    The route comes before the rule, so that no packet is sent to an empty table.

    Raises:
        NotPermitted, Unsupported: the kernel refused, or has no policy routing.
    """
    with _netlink() as ipr:
        route_missing = not _local_default(ipr, route.table)
        rule_missing = route not in map(_route_of, _rules(ipr))
        if route_missing:
            ipr.route("add", **_local_default_spec(route.table), proto=PROTOCOL)
        if rule_missing:
            ipr.rule("add", family=AF_INET, fwmark=route.mark, table=route.table, protocol=PROTOCOL)
    return route_missing or rule_missing


def delete(route: TproxyRoute) -> None:
    """Remove a policy route; its table's default stays while another rule leads there.

    Raises:
        NotPermitted, Unsupported: the kernel refused.
    """
    with _netlink() as ipr:
        for rule in _rules(ipr):
            if _route_of(rule) == route:
                ipr.rule("del", family=AF_INET, fwmark=route.mark, table=route.table, priority=rule.get("priority"))
        if route.table not in (rule.get("table") for rule in _rules(ipr)) and _local_default(ipr, route.table):
            ipr.route("del", **_local_default_spec(route.table))


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
    """Read the rules that look at a whole mark, as ours do."""
    rules = ipr.get_rules(family=AF_INET)
    return [rule for rule in rules if rule.get("fwmark") and rule.get("fwmask") == UINT32_MAX]


def _route_of(rule: Any) -> TproxyRoute:  # noqa: ANN401 - pyroute2's messages have no static type
    return TproxyRoute(rule.get("fwmark"), rule.get("table"))


def _local_default(ipr: IPRoute, table: int) -> bool:
    routes = ipr.get_routes(family=AF_INET, table=table)
    return any(route["type"] == RTN_LOCAL and route["dst_len"] == 0 for route in routes)


def _local_default_spec(table: int) -> dict[str, Any]:
    return {
        "family": AF_INET,
        "dst": "0.0.0.0/0",
        "type": RTN_LOCAL,
        "scope": RT_SCOPE_HOST,
        "oif": LOOPBACK,
        "table": table,
    }
