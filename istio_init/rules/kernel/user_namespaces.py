"""User namespaces: the one that owns a network namespace, and ids that it does not map; see user_namespaces(7)."""

from __future__ import annotations

import os

from istio_init.core.errors import InvalidInput, NotPermitted
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.environment import permitted_capabilities
from istio_init.rules.model import MatchKind

if TYPE_CHECKING:
    from ctypes import CDLL

    from istio_init.rules.model import Plan

CLONE_NEWUSER = 0x10000000  # linux/sched.h
NS_GET_USERNS = 0xB701  # linux/nsfs.h
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2  # linux/prctl.h
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, linux/capability.h
OWN = "/proc/thread-self/ns/user"
OWN_NETWORK = "/proc/thread-self/ns/net"
MAPS = {
    MatchKind.UID_OWNER: ("uid", "/proc/thread-self/uid_map"),
    MatchKind.GID_OWNER: ("gid", "/proc/thread-self/gid_map"),
}


def enter_owner(network_namespace: int, path: str) -> None:
    """Move this process into the user namespace that owns a network namespace, unless it is in it.

    Its user, and with that its access to files, stays the same. Programs that it starts have all capabilities there.

    Args:
        network_namespace: an open file descriptor of it.
        path: of it, for errors.

    Raises:
        NotPermitted: this process may not enter it.
    """
    import ctypes  # 2 ms, which only --network-namespace takes

    try:
        owner = _owner_of(network_namespace)
    except OSError:  # it is none of this user namespace's descendants: to enter the network namespace is refused next
        return
    try:
        if os.path.samestat(os.fstat(owner), os.stat(OWN)):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(owner, CLONE_NEWUSER) != 0:
            reason = os.strerror(ctypes.get_errno())
            message = f"cannot enter the user namespace that owns the network namespace {path!r}: {reason}"
            raise NotPermitted(f"{message}; it needs the capability SYS_ADMIN there: run it as root on the node")
        _hand_down_capabilities(libc)
    finally:
        os.close(owner)


def is_owner_hidden() -> bool:
    """Return whether this network namespace belongs to no user namespace that counts here.

    No capability of this process has an effect on it then, not even root's.
    """
    try:
        network_namespace = os.open(OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # /proc is not mounted
        return False
    try:
        os.close(_owner_of(network_namespace))
    except PermissionError:  # the owner is outside (ioctl_nsfs(2))
        return True
    except OSError:  # the kernel (before 4.9, or gVisor's) does not tell
        return False
    finally:
        os.close(network_namespace)
    return False


def refuse_unmapped(plan: Plan) -> None:
    """Refuse a plan with the id of a user or group that no process of this user namespace can have.

    Its rules would match nothing; iptables refuses them with a message that suggests a missing kernel module.

    Raises:
        InvalidInput: it has one.
    """
    matches = {match for chain in plan.chains for rule in (*chain.inserted, *chain.rules) for match in rule.matches}
    for kind, (noun, path) in MAPS.items():
        mapped = _read_map(path)
        for one in sorted(int(match.value) for match in matches if match.kind is kind):
            if not any(first <= one < first + count for first, count in mapped):
                problem = "it is not mapped in this user namespace, so no process has it here; nothing was changed"
                ranges = ", ".join(f"{first} to {first + count - 1}" for first, count in mapped) or "none yet"
                raise InvalidInput(f"{noun} {one}", problem, f"{ranges}; see {path}")


def _owner_of(network_namespace: int) -> int:
    import fcntl

    return fcntl.ioctl(network_namespace, NS_GET_USERNS)


def _read_map(path: str) -> list[tuple[int, int]]:
    """Return the first id and the number of ids of each range that is mapped."""
    try:
        with open(path, encoding="ascii") as file:
            return [(int(first), int(count)) for first, _, count in map(str.split, file)]
    except OSError:  # a kernel without user namespaces maps all
        return [(0, 2**32)]


def _hand_down_capabilities(libc: CDLL) -> None:
    """Let programs have this process's capabilities, which they would lose: its user is not root there (capabilities(7))."""
    from ctypes import c_uint32

    held = permitted_capabilities()
    low, high = held & 0xFFFFFFFF, held >> 32
    header = (c_uint32 * 2)(CAPABILITY_VERSION, 0)  # 0: of this thread
    # Effective, permitted and inheritable; the lower 32 of each, then the others.
    libc.capset(header, (c_uint32 * 6)(low, low, low, high, high, high))
    for number in range(held.bit_length()):
        if held >> number & 1:
            libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0)
