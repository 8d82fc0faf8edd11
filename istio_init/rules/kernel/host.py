"""Tells a machine's own network namespace from a pod's, so that a machine's connections are not diverted by mistake.

Two things show a host: a process of the machine itself (in the initial PID namespace, not in a container) works on the
network namespace of process 1; or the namespace holds chains that only Kubernetes nodes have. A container with a network
namespace of its own shows neither, and nor does one inside a guest (Kata), whose initial network namespace is the pod's: its
PID namespace is its own. Where `/proc` shows no PID namespace (gVisor), this is not the machine.
"""

from __future__ import annotations

import os

from istio_init.core.errors import InvalidInput, NotPermitted
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterable

PROC = "/proc"  # tests have a stand-in
INITIAL_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, the same in every kernel (linux/proc_ns.h)
# A setting that only the initial network namespace has, whoever asks (net_core_table in net/core/sysctl_net_core.c).
OF_INITIAL_NETWORK = "sys/net/core/netdev_max_backlog"

# kube-proxy's (iptables and ipvs), Calico's, Cilium's and flannel's; and kube-proxy's table in its mode `nftables`.
NODE_CHAINS = frozenset({"KUBE-SERVICES", "KUBE-NODEPORTS", "cali-PREROUTING", "CILIUM_PRE_nat", "FLANNEL-POSTRTG"})
NODE_TABLE = "kube-proxy"

HOST_FLAG, HOST_VARIABLE = "--host", "ISTIO_INIT_HOST"
MEANT = f"{HOST_FLAG}, or ${HOST_VARIABLE}=true, if this host itself is meant, as on a VM"


def is_machine() -> bool:
    """Return whether this is a process of the machine itself, and works on the machine's own network namespace."""
    if _namespace("self/ns/pid") != INITIAL_PID_NAMESPACE:
        return False
    first = _namespace("1/ns/net")
    if first:
        return first == _namespace("thread-self/ns/net")
    # Without the capability SYS_PTRACE, a pod with hostPID may not look at process 1.
    return os.path.exists(f"{PROC}/{OF_INITIAL_NETWORK}")


def refuse_machine() -> None:
    """Refuse to write into the machine's own network namespace.

    Raises:
        InvalidInput: this thread is in it.
    """
    if is_machine():
        problem = "this network namespace is the machine's own (that of process 1), not a pod's; nothing was changed"
        raise InvalidInput(HOST_FLAG, problem, f"{MEANT}; else a pod's namespace, or for a trial that of `unshare -n`")


def refuse_node(noted: Iterable[str] = ()) -> None:
    """Refuse to write into the network namespace of a Kubernetes node.

    Args:
        noted: chains of legacy tables that a backend noted; see `node_chains_in`. Those in nf_tables are asked for here.

    Raises:
        InvalidInput: there is a chain that only a node has.
        Unsupported: the kernel's list of chains could not be read.
    """
    found = sorted({*noted, *_listed()})
    if found:
        problem = (
            f"the chain {found[0]} shows that this network namespace is a Kubernetes node's, which pods with "
            "hostNetwork share; nothing was changed"
        )
        raise InvalidInput(HOST_FLAG, problem, f"{MEANT}; else a pod without hostNetwork")


def node_chains_in(saved: str) -> set[str]:
    """Return the chains that only a node has, of those that iptables-save printed."""
    return {name for name in NODE_CHAINS if f"\n:{name} " in saved}


def _listed() -> set[str]:
    """Return the chains in nf_tables that only a node has; none if this process may not ask, for then it cannot write."""
    from istio_init.rules.kernel.nf_tables import chains

    try:
        listed = [chain for family in Family for chain in chains(family)]
    except NotPermitted:
        return set()
    return {name for table, name in listed if name in NODE_CHAINS or table == NODE_TABLE}


def _namespace(path: str) -> str:
    """Return a namespace's type and number, such as `net:[4026531840]`, or "" if it cannot be read."""
    try:
        return os.readlink(f"{PROC}/{path}")
    except OSError:
        return ""
