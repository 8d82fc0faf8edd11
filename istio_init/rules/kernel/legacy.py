"""What is particular to legacy xtables: which tables exist, found out without making them, and its lock file."""

from __future__ import annotations

import os

from istio_init.rules.model import Family, Table

# The tables that legacy xtables has made in this network namespace, one a line (net/netfilter/x_tables.c). To ask for a
# table in any other way makes the kernel load it.
NAMES = {
    Family.IPV4: "/proc/thread-self/net/ip_tables_names",
    Family.IPV6: "/proc/thread-self/net/ip6_tables_names",
}

XTABLES_LOCK = "/run/xtables.lock"
XTABLES_LOCK_VARIABLE = "XTABLES_LOCKFILE"

LOCK_FILE_REMEDY = (
    "mount a writable /run, set XTABLES_LOCKFILE to a writable path, or use --iptables-variant nft, which needs no lock file"
)


def legacy_tables(family: Family) -> tuple[Table, ...]:
    """List the tables of iptables(8) that a family has; all of them where only root could tell."""
    try:
        with open(NAMES[family], encoding="ascii") as names:
            present = names.read().split()
    except FileNotFoundError:
        return ()
    except PermissionError:
        return tuple(Table)
    return tuple(table for table in Table if table in present)


def are_tables_known(family: Family) -> bool:
    """Return whether `legacy_tables` knows, or only root could tell."""
    return not os.path.exists(NAMES[family]) or os.access(NAMES[family], os.R_OK)


def is_lock_chosen() -> bool:
    """Return whether the user said where the lock file is."""
    return bool(os.environ.get(XTABLES_LOCK_VARIABLE))


def own_lock_file() -> int:
    """Make a lock file in memory, for where the usual one cannot be: on a read-only file system, or without its directory.

    Nobody else in this container can hold a lock that cannot be there, and two runs of ours have a lock of their own.

    Returns:
        an open file; `lock_path` names it for as long as it is open.
    """
    return os.memfd_create("xtables.lock")


def lock_path(file: int) -> str:
    """Return the path by which programs that we start find an open file of ours."""
    return f"/proc/{os.getpid()}/fd/{file}"


def lock_notice(reason: str, path: str) -> str:
    """Say that another lock file is used than the usual one.

    Args:
        reason: why that cannot be opened.
        path: of the one that is used.
    """
    return (
        f"the lock file {XTABLES_LOCK} cannot be opened ({reason}), so legacy iptables uses one of our own, {path}; "
        "programs of other containers that change these tables at the same moment are not waited for"
    )
