"""The lab's network: a bridge in the lab's own namespace, and a veth pair from it to each pod."""

from __future__ import annotations

from typing import Any

from pyroute2 import IPRoute

from istio_init.bootstrap.common import LOCALHOST
from istio_init.lab.settings import GATEWAY, PREFIX
from istio_init.model import TPROXY_ROUTE_TABLE

BRIDGE = "mesh"
INTERFACE = "eth0"
BEFORE_MAIN = 100  # a priority of policy rules; the table main has 32766
LAB = 1  # the process id of the lab's supervisor, which is process 1 of its PID namespace


def make_bridge() -> None:
    """Make the bridge, in the namespace of this process; its address is the pods' gateway."""
    with IPRoute() as ipr:
        _set_up(ipr, "lo")
        ipr.link("add", ifname=BRIDGE, kind="bridge")
        ipr.addr("add", index=_index(ipr, BRIDGE), address=GATEWAY, prefixlen=PREFIX)
        _set_up(ipr, BRIDGE)


def join(link: str, address: str) -> None:
    """Join this process's namespace, a pod's, to the lab's.

    Args:
        link: the name of the other end, which appears in the lab's namespace.
        address: the pod's.
    """
    with IPRoute() as ipr:
        _set_up(ipr, "lo")
        ipr.link("add", ifname=INTERFACE, kind="veth", peer={"ifname": link, "net_ns_pid": LAB})
        ipr.addr("add", index=_index(ipr, INTERFACE), address=address, prefixlen=PREFIX)
        _set_up(ipr, INTERFACE)
        ipr.route("add", dst="default", gateway=GATEWAY)
        # With TPROXY an app sees its client's real address. What it answers, from localhost, must go to the proxy and not
        # out: to the table that delivers everything to this host, which istio-init makes, and which is empty without TPROXY.
        ipr.rule("add", src=LOCALHOST, src_len=32, iifname="lo", table=TPROXY_ROUTE_TABLE, priority=BEFORE_MAIN)


def attach(link: str) -> None:
    """Put the lab's end of a pod's link on the bridge."""
    with IPRoute() as ipr:
        ipr.link("set", index=_index(ipr, link), master=_index(ipr, BRIDGE), state="up")


def _set_up(ipr: Any, name: str) -> None:  # noqa: ANN401 - pyroute2 has no types
    ipr.link("set", index=_index(ipr, name), state="up")


def _index(ipr: Any, name: str) -> int:  # noqa: ANN401 - as above
    index: int = ipr.link_lookup(ifname=name)[0]
    return index
