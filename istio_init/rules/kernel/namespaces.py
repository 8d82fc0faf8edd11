"""Enters another network namespace, and the user namespace that owns it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat

from istio_init.core.errors import InvalidInput, NotPermitted
from istio_init.rules.kernel.locks import NETWORK_NAMESPACE, note_departure
from istio_init.rules.kernel.user_namespaces import enter_owner

CLONE_NEWNET = 0x40000000  # linux/sched.h
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
ALLOWED = "the path of a network namespace, such as /run/netns/NAME or /proc/PID/ns/net"


def enter_network_namespace(path: str, where: str) -> None:
    """Move this thread, and processes that it starts later, into a network namespace.

    It enters the user namespace that owns it, too, where that is another one (a pod with `hostUsers: false`): elsewhere,
    iptables' owner matches are refused (net/netfilter/xt_owner.c), and ids are not those of the pod.

    Args:
        path: path of the namespace, such as /run/netns/NAME.
        where: the flag or variable that gave the path, for error messages.

    Raises:
        InvalidInput: the file does not exist, or is not a network namespace.
        NotPermitted: this process may not open it, or enter it or its owner.
    """
    namespace = _open(path, where)
    try:
        if not _is_network_namespace(namespace):
            raise InvalidInput(where, f"{path!r} is not a network namespace", ALLOWED)
        was = os.readlink(NETWORK_NAMESPACE)
        enter_owner(namespace, path)
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists since Python 3.12
        if libc.setns(namespace, CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            message = f"cannot enter the network namespace {path!r}: {reason}; it needs the capability SYS_ADMIN"
            raise NotPermitted(message)
        if os.readlink(NETWORK_NAMESPACE) != was:
            note_departure()
    finally:
        os.close(namespace)


def _open(path: str, where: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a FIFO would block until it has a writer
    except PermissionError as error:
        message = f"cannot open the network namespace {path!r}: {error.strerror}; run as the user that owns it, or as root"
        raise NotPermitted(message) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot open {path!r}: {error}", ALLOWED) from None


def _is_network_namespace(file: int) -> bool:
    # stat(2) shows namespaces as regular files. The ioctl is not sent to devices, where it may mean something else.
    if not stat.S_ISREG(os.fstat(file).st_mode):
        return False
    try:
        return fcntl.ioctl(file, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False
