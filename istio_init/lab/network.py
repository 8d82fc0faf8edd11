"""The lab's network: a bridge in the lab's own namespace, and a veth pair from it to each pod."""

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
IFA_F_NODAD = 2  # linux/if_addr.h: an address of IPv6 that is used at once, without a search for another host that has it
BEFORE_MAIN = 100  # a priority of policy rules; the table main has 32766
_NUMBERS = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
LAB = 1  # the process id of the lab's supervisor, which is process 1 of its PID namespace


def make_bridge(families: Sequence[Family]) -> None:
    """Make the bridge, in the namespace of this process; its addresses are the pods' gateways."""
    with IPRoute() as ipr:
        _set_up(ipr, "lo")
        ipr.link("add", ifname=BRIDGE, kind="bridge")
        for family in families:
            _add_address(ipr, BRIDGE, gateway(family))
        _set_up(ipr, BRIDGE)


def join(link: str, addresses: Sequence[str]) -> None:
    """Join this process's namespace, a pod's, to the lab's.

    Args:
        link: the name of the other end, which appears in the lab's namespace.
        addresses: the pod's, one of each family that it has.
    """
    with IPRoute() as ipr:
        _set_up(ipr, "lo")
        ipr.link("add", ifname=INTERFACE, kind="veth", peer={"ifname": link, "net_ns_pid": LAB})
        for address in addresses:
            _add_address(ipr, INTERFACE, address)
        _set_up(ipr, INTERFACE)
        for family in map(family_of, addresses):
            ipr.route("add", dst="default", gateway=gateway(family), family=_NUMBERS[family])
        # With TPROXY an app sees its client's real address. What it answers, from localhost, must go to the proxy and not
        # out: to the table that delivers everything to this host, which istio-init makes, and which is empty without TPROXY.
        # IPv6 goes without: there, the kernel routes a packet from ::1 to elsewhere, and then layout current, the only one
        # with IPv6, gives it the mark of its connection, by which it is routed again. From 127.0.0.1 it gets nowhere.
        ipr.rule("add", src=LOCALHOST, src_len=32, iifname="lo", table=TPROXY_ROUTE_TABLE, priority=BEFORE_MAIN)


def attach(link: str) -> None:
    """Put the lab's end of a pod's link on the bridge."""
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
