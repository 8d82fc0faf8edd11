"""What is particular to legacy xtables: which tables exist, found out without making them, and its lock file."""

from __future__ import annotations

from istio_init.model import Family, Table

# The tables that legacy xtables has made in this network namespace, one a line (net/netfilter/x_tables.c). To ask for a
# table in any other way makes the kernel load it.
NAMES = {
    Family.IPV4: "/proc/thread-self/net/ip_tables_names",
    Family.IPV6: "/proc/thread-self/net/ip6_tables_names",
}

LOCK_FILE_REMEDY = (
    "mount a writable /run, set XTABLES_LOCKFILE to a writable path, or use --iptables-variant nft, which needs no lock file"
)


def legacy_tables(family: Family) -> tuple[Table, ...]:
    """List the tables of iptables(8) that a family has; all of them where only root could tell."""
    try:
        with open(NAMES[family], encoding="ascii") as names:  # noqa: PTH123 - pathlib is dear to import
            present = names.read().split()
    except FileNotFoundError:
        return ()
    except PermissionError:
        return tuple(Table)
    return tuple(table for table in Table if table in present)
