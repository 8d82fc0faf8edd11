"""Which established connections end with a change of rules, counted in the kernel's connection tracking.

Between rules of the same mode none does. Two kinds end when the mode changes:

- those that the proxy opened to its app from a client's own address (Envoy's `original_src`), where no rule is left that
  routes the app's answers back to the proxy;
- those that were ever redirected inbound, where Istio 1.0's TPROXY follows: its `-m socket` looks for a socket by the
  address that the client sees, which is not the one that the proxy's has.
"""

from __future__ import annotations

import struct

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.handover import saved_marks, seeks_sockets
from istio_init.rules.kernel.netlink import NETLINK_NETFILTER, Netlink, parse
from istio_init.rules.kernel.nf_tables import BODY, NFPROTO, NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.parts import Part
    from istio_init.rules.model import Family, Snapshot

    Attributes = dict[int, bytes]

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
IPCTNL_MSG_CT_GET = 1 << 8 | 1  # of NFNL_SUBSYS_CTNETLINK
CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_MARK = 2, 3, 4, 8
CTA_TUPLE_IP, CTA_IP_V4_SRC, CTA_IP_V6_SRC = 1, 1, 3
CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE = 1, 1
ESTABLISHED = b"\3"  # TCP_CONNTRACK_ESTABLISHED: linux/netfilter/nf_conntrack_tcp.h
IPS_DST_NAT = 1 << 5  # linux/netfilter/nf_conntrack_common.h
NO_HEADER = struct.Struct("")
LOOPBACK = (b"\x7f", b"\0" * 15 + b"\1")  # how the addresses of lo begin

FROM_CLIENTS = (
    "those of the proxy to its app that come from clients' own addresses, because no rule is left that leads the app's "
    "answers back to the proxy"
)
REDIRECTED = (
    "those of clients that were redirected to the proxy, because TPROXY of layout istio-1.0 does not find their sockets"
)


def warn_of_ends(parts: Sequence[Part], wanted: Mapping[Family, Snapshot], warn: Observer) -> None:
    """Tell how many established connections end, before they do.

    Args:
        parts: what there is.
        wanted: what there will be.
        warn: receives a warning for each kind and family.
    """
    for family in parts[0].before:
        held, new = [part.before.get(family, {}) for part in parts], wanted.get(family, {})
        gone = frozenset(mark for tables in held for mark in saved_marks(tables)) - saved_marks(new)
        for mark in sorted(gone):
            _warn_of(family, FROM_CLIENTS, _bears(mark), warn)
        if seeks_sockets(new) and any(part.holds(family) for part in parts) and not any(map(seeks_sockets, held)):
            _warn_of(family, REDIRECTED, _is_redirected_inbound, warn)


def _warn_of(family: Family, which: str, belongs: Callable[[Attributes], bool], warn: Observer) -> None:
    try:
        number = str(sum(_is_established(one) and belongs(one) for one in _connections(family)))
    except OSError as error:
        number = f"nobody knows how many ({error.strerror})"
    if number != "0":
        warn(f"{number} established {family} connections end: {which}")


def _bears(mark: int) -> Callable[[Attributes], bool]:
    return lambda connection: connection.get(CTA_MARK) == NUMBER.pack(mark)


def _connections(family: Family) -> Iterator[Attributes]:
    with Netlink(NETLINK_NETFILTER) as kernel:
        listed = kernel.dump(IPCTNL_MSG_CT_GET, BODY.pack(NFPROTO[family], 0, 0))
    return (parse(body, BODY)[1] for body in listed)


def _is_established(connection: Attributes) -> bool:
    return _nested(connection, CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE) == ESTABLISHED


def _is_redirected_inbound(connection: Attributes) -> bool:
    (status,) = NUMBER.unpack(connection.get(CTA_STATUS, bytes(NUMBER.size)))
    source = CTA_IP_V4_SRC, CTA_IP_V6_SRC
    answers_from = b"".join(_nested(connection, CTA_TUPLE_REPLY, CTA_TUPLE_IP, kind) for kind in source)
    # What the app opened itself was redirected to an address of lo.
    return bool(status & IPS_DST_NAT) and not answers_from.startswith(LOOPBACK)


def _nested(attributes: Attributes, *kinds: int) -> bytes:
    for kind in kinds[:-1]:
        _, attributes = parse(attributes.get(kind, b""), NO_HEADER)
    return attributes.get(kinds[-1], b"")
