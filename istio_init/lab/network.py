"""The lab's network: a bridge in the lab's namespace, with a veth pair to each pod."""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute

from istio_init.lab.settings import NETWORKS, gateway
from istio_init.lab.world import family_of
from istio_init.rules.model import TPROXY_ROUTE_TABLE, Family
from istio_init.sidecar.bootstrap.common import LOCALHOST

if TYPE_CHECKING:
    from collections.abc import Sequence

BRIDGE = "mesh"
INTERFACE = "eth0"
IFA_F_NODAD = 2  # linux/if_addr.h: skip IPv6's duplicate address detection, so that the address is usable at once
RULE_PRIORITY = 100  # of the policy rule; before the main table, which has 32766
_NUMBERS = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
LAB = 1  # the process ID of the lab's supervisor in its PID namespace


def make_bridge(families: Sequence[Family]) -> None:
    """Create the bridge in this process's namespace, with the pods' gateway addresses."""
    with IPRoute() as ipr:
        _set_up(ipr, "lo")
        ipr.link("add", ifname=BRIDGE, kind="bridge")
        for family in families:
            _add_address(ipr, BRIDGE, gateway(family))
        _set_up(ipr, BRIDGE)


def join(link: str, addresses: Sequence[str]) -> None:
    """Connect this process's namespace, which is a pod's, to the lab's.

    Args:
        link: the name of the peer interface in the lab's namespace.
        addresses: the pod's addresses, one per family.
    """
    with IPRoute() as ipr:
        _set_up(ipr, "lo")
        ipr.link("add", ifname=INTERFACE, kind="veth", peer={"ifname": link, "net_ns_pid": LAB})
        for address in addresses:
            _add_address(ipr, INTERFACE, address)
        _set_up(ipr, INTERFACE)
        for family in map(family_of, addresses):
            ipr.route("add", dst="default", gateway=gateway(family), family=_NUMBERS[family])
        # With TPROXY, an app sees its client's real address. Its responses, from 127.0.0.1, must be routed to the proxy and
        # not out of the pod: by the table that delivers everything locally, which istio-init fills, and which is empty
        # without TPROXY. IPv6 does not need this: the kernel accepts a packet from ::1 to an external address, and layout
        # current, the only one with IPv6, then restores the connection's mark, which reroutes it. From 127.0.0.1, the
        # packet would be dropped earlier.
        ipr.rule("add", src=LOCALHOST, src_len=32, iifname="lo", table=TPROXY_ROUTE_TABLE, priority=RULE_PRIORITY)


def attach(link: str) -> None:
    """Attach the lab's end of a pod's link to the bridge."""
    with IPRoute() as ipr:
        ipr.link("set", index=_index(ipr, link), master=_index(ipr, BRIDGE), state="up")


def _add_address(ipr: Any, name: str, address: str) -> None:
    family = family_of(address)
    flags = {"flags": IFA_F_NODAD} if family is Family.IPV6 else {}
    ipr.addr("add", index=_index(ipr, name), address=address, prefixlen=NETWORKS[family].bits, **flags)


def _set_up(ipr: Any, name: str) -> None:
    ipr.link("set", index=_index(ipr, name), state="up")


def _index(ipr: Any, name: str) -> int:
    index: int = ipr.link_lookup(ifname=name)[0]
    return index
