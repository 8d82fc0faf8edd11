"""Specifics of legacy xtables: which tables exist, without creating them, and its lock file."""

from __future__ import annotations

import os

from istio_init.rules.kernel.locks import NETWORK_NAMESPACE, has_departed
from istio_init.rules.model import Family, Table

# The legacy tables that exist in this network namespace, one per line (net/netfilter/x_tables.c). Asking for a table in any
# other way makes the kernel create it.
NAMES = {
    Family.IPV4: "/proc/thread-self/net/ip_tables_names",
    Family.IPV6: "/proc/thread-self/net/ip6_tables_names",
}

FIRST_NAMESPACE = "/proc/1/ns/net"
XTABLES_LOCK = "/run/xtables.lock"
XTABLES_LOCK_VARIABLE = "XTABLES_LOCKFILE"

LOCK_FILE_REMEDY = (
    "mount a writable /run, set XTABLES_LOCKFILE to a writable path, or use --iptables-variant nft, which needs no lock file"
)


def legacy_tables(family: Family) -> tuple[Table, ...]:
    """Return the legacy tables that exist for a family; all of them if only root may read the list."""
    try:
        with open(NAMES[family], encoding="ascii") as names:
            present = names.read().split()
    except FileNotFoundError:
        return ()
    except PermissionError:
        return tuple(Table)
    return tuple(table for table in Table if table in present)


def are_tables_known(family: Family) -> bool:
    """Return whether the list is readable, so that `legacy_tables` is exact."""
    return not os.path.exists(NAMES[family]) or os.access(NAMES[family], os.R_OK)


def is_lock_chosen() -> bool:
    """Return whether the user set the path of the lock file."""
    return bool(os.environ.get(XTABLES_LOCK_VARIABLE))


def is_lock_of_others() -> bool:
    """Return whether the usual lock file belongs to a machine or container with a network namespace of its own.

    Its programs change other tables than this process does, in another namespace (`--network-namespace`, a node agent), so
    there is nothing to wait for. The first process here shows whose file system this is.
    """
    if is_lock_chosen():
        return False
    if has_departed():
        return True
    try:
        return os.readlink(FIRST_NAMESPACE) != os.readlink(NETWORK_NAMESPACE)
    except OSError:  # only root may look
        return False


def own_lock_file() -> int:
    """Create an in-memory lock file, for use where the default one cannot be created (read-only root, no /run).

    No other process in this container can create the default one either, and concurrent runs of this program are
    serialised by the lock of the network namespace (`istio_init.rules.kernel.locks`).

    Returns:
        an open file descriptor; `lock_path` returns its path, which is valid for as long as it is open.
    """
    return os.memfd_create("xtables.lock")


def lock_path(file: int) -> str:
    """Return a path through which child processes can open a file descriptor of this process."""
    return f"/proc/{os.getpid()}/fd/{file}"


def lock_notice(reason: str, path: str) -> str:
    """Return the warning that a private lock file is used instead of the default one.

    Args:
        reason: why the default one cannot be opened.
        path: path of the private one.
    """
    return (
        f"the lock file {XTABLES_LOCK} cannot be opened ({reason}), so legacy iptables uses a private one, {path}; "
        "it does not exclude programs in other containers that change these tables at the same time"
    )
