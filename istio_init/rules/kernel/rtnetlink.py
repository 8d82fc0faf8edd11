"""Reads and writes policy rules, routes and addresses by rtnetlink(7); it does not know what they are for."""

from __future__ import annotations

import struct
import sys

from istio_init.core.light import TYPE_CHECKING, NamedTuple, socket
from istio_init.rules.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, attribute, parse
from istio_init.rules.model import UINT32_MAX

if TYPE_CHECKING:
    from istio_init.rules.kernel.netlink import Netlink

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22  # linux/rtnetlink.h, with all up to RTA_TABLE
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTN_LOCAL = 2
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_HOST = 254
RT_TABLE_UNSPEC = 0  # in the header, whose field ends at 255; an attribute holds the table
RTA_OIF = 4
RTA_TABLE = 15
FR_ACT_TO_TBL = 1  # linux/fib_rules.h, with all up to FRA_PROTOCOL
FIB_RULE_INVERT = 2  # `ip rule add not …`
FRA_PRIORITY = 6
FRA_FWMARK = 10
FRA_SUPPRESS_PREFIXLEN = 14
FRA_TABLE = 15
FRA_FWMASK = 16
FRA_PROTOCOL = 21
IFA_ADDRESS = 1  # linux/if_addr.h
IFA_PROTO = 11

# fib_rule_hdr: family, prefix lengths of destination and source, TOS, table, two reserved bytes, action, flags
# rtmsg: family, prefix lengths of destination and source, TOS, table, protocol, scope, type, flags
RULE_OR_ROUTE = struct.Struct("=8BI")
ADDRESS = struct.Struct("=4BI")  # ifaddrmsg: family, prefix length, flags, scope, interface
UINT32 = struct.Struct("=I")
ADDRESS_SIZES: dict[int, int] = {socket.AF_INET: 4, socket.AF_INET6: 16}  # bytes


class Rule(NamedTuple):
    """A policy rule; fields and attribute types show whether it has selectors other than a mark."""

    family: int
    mark: int
    mask: int
    table: int
    priority: int
    protocol: int
    action: int = FR_ACT_TO_TBL
    is_inverted: bool = False
    destination_length: int = 0
    source_length: int = 0
    tos: int = 0
    suppressor: int = UINT32_MAX  # the kernel's value for "suppresses nothing"
    attributes: frozenset[int] = frozenset()


class Route(NamedTuple):
    """A route: the fields that identify a policy route."""

    family: int
    destination_length: int
    table: int
    protocol: int
    kind: int


class Address(NamedTuple):
    """An address of an interface; `text` is empty if it is neither IPv4 nor IPv6."""

    family: int
    text: str
    prefix_length: int
    scope: int
    interface: int
    protocol: int


def rules(kernel: Netlink, family: int) -> list[Rule]:
    """Read the policy rules of a family (AF_*).

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; EAFNOSUPPORT if it has no policy routing for this family.
    """
    header = RULE_OR_ROUTE.pack(family, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, 0, 0)
    return [_rule(content) for content in kernel.dump(RTM_GETRULE, header)]


def routes(kernel: Netlink, family: int) -> list[Route]:
    """Read the routes of a family, in all tables; a kernel without that family returns those of all other families.

    Raises:
        ReadError, OSError: see `Netlink`.
    """
    header = RULE_OR_ROUTE.pack(family, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, 0, 0)
    return [_route(content) for content in kernel.dump(RTM_GETROUTE, header)]


def addresses(kernel: Netlink, family: int = socket.AF_UNSPEC) -> list[Address]:
    """Read the addresses of all interfaces; a kernel without that family returns those of all other families.

    Raises:
        ReadError, OSError: see `Netlink`.
    """
    return [_address(content) for content in kernel.dump(RTM_GETADDR, ADDRESS.pack(family, 0, 0, 0, 0))]


def add_rule(kernel: Netlink, rule: Rule) -> None:
    """Add a rule that matches a mark, without a mask, and looks up a table.

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; EEXIST if the rule exists.
    """
    kernel.request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule_body(rule))


def delete_rule(kernel: Netlink, rule: Rule) -> None:
    """Remove a rule that matches a mark, without a mask, and looks up a table.

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; ENOENT if there is no such rule.
    """
    kernel.request(RTM_DELRULE, 0, _rule_body(rule))


def add_local_default(kernel: Netlink, family: int, table: int, interface: int, protocol: int) -> None:
    """Add the route `local default` to a table: packets that are looked up there are delivered to this host.

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; EEXIST if the route exists.
    """
    kernel.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, _local_default_body(family, table, interface, protocol))


def delete_local_default(kernel: Netlink, family: int, table: int, interface: int) -> None:
    """Remove the route `local default` from a table, whoever added it.

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; ESRCH if there is no such route.
    """
    kernel.request(RTM_DELROUTE, 0, _local_default_body(family, table, interface, 0))


def add_address(kernel: Netlink, address: Address) -> None:
    """Add an address to an interface.

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; EEXIST if the interface has the address.
    """
    body = _address_body(address) + attribute(IFA_PROTO, bytes((address.protocol,)))
    kernel.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_address(kernel: Netlink, address: Address) -> None:
    """Remove an address from an interface, whoever added it.

    Raises:
        ReadError: see `Netlink`.
        OSError: the kernel refused; EADDRNOTAVAIL if the interface has no such address.
    """
    kernel.request(RTM_DELADDR, 0, _address_body(address))


def _rule(content: bytes) -> Rule:
    (family, to, source, tos, table, _, _, action, flags), attributes = parse(content, RULE_OR_ROUTE)
    return Rule(
        family,
        _number(attributes, FRA_FWMARK),
        _number(attributes, FRA_FWMASK),
        _number(attributes, FRA_TABLE, table),
        _number(attributes, FRA_PRIORITY),
        _number(attributes, FRA_PROTOCOL),
        action,
        bool(flags & FIB_RULE_INVERT),
        to,
        source,
        tos,
        _number(attributes, FRA_SUPPRESS_PREFIXLEN, UINT32_MAX),
        frozenset(attributes),
    )


def _route(content: bytes) -> Route:
    (family, length, _, _, table, protocol, _, kind, _), attributes = parse(content, RULE_OR_ROUTE)
    return Route(family, length, _number(attributes, RTA_TABLE, table), protocol, kind)


def _address(content: bytes) -> Address:
    (family, length, _, scope, interface), attributes = parse(content, ADDRESS)
    packed = attributes.get(IFA_ADDRESS, b"")
    text = socket.inet_ntop(family, packed) if len(packed) == ADDRESS_SIZES.get(family) else ""
    return Address(family, text, length, scope, interface, _number(attributes, IFA_PROTO))


def _number(attributes: dict[int, bytes], kind: int, default: int = 0) -> int:
    """Return the value of an integer attribute of any size; the kernel omits most attributes that are 0."""
    return int.from_bytes(attributes[kind], sys.byteorder) if kind in attributes else default


def _rule_body(rule: Rule) -> bytes:
    header = RULE_OR_ROUTE.pack(rule.family, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0)
    numbers = ((FRA_FWMARK, rule.mark), (FRA_TABLE, rule.table), (FRA_PRIORITY, rule.priority))
    attributes = b"".join(attribute(kind, UINT32.pack(number)) for kind, number in numbers)
    return header + attributes + attribute(FRA_PROTOCOL, bytes((rule.protocol,)))


def _local_default_body(family: int, table: int, interface: int, protocol: int) -> bytes:
    header = RULE_OR_ROUTE.pack(family, 0, 0, 0, RT_TABLE_UNSPEC, protocol, RT_SCOPE_HOST, RTN_LOCAL, 0)
    return header + attribute(RTA_TABLE, UINT32.pack(table)) + attribute(RTA_OIF, UINT32.pack(interface))


def _address_body(address: Address) -> bytes:
    header = ADDRESS.pack(address.family, address.prefix_length, 0, address.scope, address.interface)
    return header + attribute(IFA_ADDRESS, socket.inet_pton(address.family, address.text))
