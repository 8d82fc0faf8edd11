"""The simulated network outside the pod: a veth pair, both ends in this network namespace.

One end has addresses, and marked packets are routed to it. The other end has no address: a packet socket reads what arrives
there, and what it writes arrives like a packet from outside. Connections can thus be opened in both directions with the same
capabilities that writing rules needs, and none leaves the pod.
"""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from istio_init.core.errors import Unsupported
from istio_init.rules.model import Family
from istio_init.rules.validation.packets import ADDRESS_FAMILIES, Segment, pack, parse
from istio_init.rules.validation.paths import INSIDE, INTERFACE, OUTSIDE

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER_END = f"{INTERFACE}-far"
PREFIX = {Family.IPV4: 30, Family.IPV6: 126}
UNUSED_MAC = "02:00:00:00:00:02"  # of no interface: packets to it stop at the other end
BEFORE_MAIN = 32000  # priority of the policy rule; the table main has 32766
NUMBERS = (15002, 15003, 15004)  # for mark and table: at least one is neither the mark nor the table of TPROXY
IFA_F_NODAD = 0x02  # linux/if_addr.h: no duplicate address detection, because no other host is on this link
NUD_PERMANENT = 0x80  # linux/neighbour.h
ETH_P_ALL = 0x0003  # linux/if_ether.h
ETHERTYPES = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
PACKET_BYTES = 2048


class ProbeNetwork(NamedTuple):
    """The veth pair.

    Attributes:
        far: a packet socket at the other end.
        mark: the mark of packets that are routed there.
        address: the near end's link-layer address.
        missing: for each family that is not available, the reason.
    """

    far: socket.socket
    mark: int
    address: bytes
    missing: dict[Family, str]

    def send(self, segment: Segment) -> None:
        """Send a segment into the pod; errors are ignored, because the caller retries."""
        with suppress(OSError):
            self.far.sendto(pack(segment), (OTHER_END, ETHERTYPES[segment.family], 0, 0, self.address))

    def received(self) -> Iterator[Segment]:
        """Yield the segments that have left the pod since the last call, without waiting."""
        while True:
            try:
                packet, sender = self.far.recvfrom(PACKET_BYTES)
            except BlockingIOError:
                return
            segment = parse(packet) if sender[2] != socket.PACKET_OUTGOING else None
            if segment:
                yield segment


@contextmanager
def probe_network(families: tuple[Family, ...], taken: frozenset[int]) -> Iterator[ProbeNetwork]:
    """Create the network during a block.

    Args:
        families: the families to probe.
        taken: marks and routing tables already in use.

    Raises:
        Unsupported: the interfaces cannot be created here.
    """
    number = next(one for one in NUMBERS if one not in taken)
    try:
        with IPRoute() as ipr:
            _remove(ipr, number)  # left over from a validation that was killed
            ipr.link("add", ifname=INTERFACE, kind="veth", peer={"ifname": OTHER_END})
            try:
                with _opened(ipr, families, number) as made:
                    yield made
            finally:
                _remove(ipr, number)
    except NetlinkError as error:
        raise Unsupported(f"cannot create a veth pair: {error}") from error


@contextmanager
def _opened(ipr: IPRoute, families: tuple[Family, ...], number: int) -> Iterator[ProbeNetwork]:
    # The far end first, so that the near end has a carrier as soon as it is up.
    for name in (OTHER_END, INTERFACE):
        ipr.link("set", index=_link(ipr, name)["index"], state="up")
    near = _link(ipr, INTERFACE)
    missing = {family: why for family in families if (why := _connect(ipr, family, near["index"], number))}
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as far:
        far.bind((OTHER_END, ETH_P_ALL))
        far.settimeout(0)
        yield ProbeNetwork(far, number, bytes.fromhex(near.get("address").replace(":", "")), missing)


def _connect(ipr: IPRoute, family: Family, index: int, number: int) -> str:
    """Add a family's addresses and routes; return why this is not possible, or ""."""
    kind, outside = ADDRESS_FAMILIES[family], OUTSIDE[family]
    nodad = {"flags": IFA_F_NODAD} if family is Family.IPV6 else {}
    try:
        ipr.addr("add", index=index, address=INSIDE[family], prefixlen=PREFIX[family], family=kind, **nodad)
        ipr.neigh("add", dst=outside, lladdr=UNUSED_MAC, ifindex=index, state=NUD_PERMANENT, family=kind)
        ipr.route("add", dst="default", gateway=outside, oif=index, table=number, family=kind)
        ipr.rule("add", fwmark=number, table=number, priority=BEFORE_MAIN, family=kind)
    except NetlinkError as error:
        return str(error)
    return ""


def _remove(ipr: IPRoute, number: int) -> None:
    """Remove the policy rules and the veth pair, and with it addresses, neighbours and routes."""
    for kind in ADDRESS_FAMILIES.values():
        with suppress(NetlinkError):
            ipr.rule("del", fwmark=number, table=number, priority=BEFORE_MAIN, family=kind)
    for index in ipr.link_lookup(ifname=INTERFACE):
        try:
            ipr.link("del", index=index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


def _link(ipr: IPRoute, name: str) -> Any:
    (index,) = ipr.link_lookup(ifname=name)
    return next(iter(ipr.get_links(index)))
