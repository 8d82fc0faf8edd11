"""Which chains nf_tables holds, asked of the kernel itself, so that a backend sees what other programs than its own made.

`nft list` would start a program on each start of a pod.
"""

from __future__ import annotations

import struct

from istio_init.core.errors import Unsupported
from istio_init.rules.kernel.netlink import NETLINK_NETFILTER, Netlink, ReadError, parse
from istio_init.rules.model import Family

NFT_MSG_GETCHAIN = 10 << 8 | 4  # linux/netfilter/nfnetlink.h: NFNL_SUBSYS_NFTABLES; nf_tables.h
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3  # linux/netfilter/nf_tables.h
NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}  # linux/netfilter.h

BODY = struct.Struct("!BBH")  # nfgenmsg: family, version, resource


def chains(family: Family) -> frozenset[tuple[str, str]]:
    """List the chains that one family has in nf_tables, whichever program made them, as `(table, chain)`.

    A kernel without nf_tables, or one that does not let this process ask, has none that could be changed.

    Raises:
        Unsupported: the kernel's answer could not be read.
    """
    try:
        with Netlink(NETLINK_NETFILTER) as kernel:
            return frozenset(map(_names, kernel.dump(NFT_MSG_GETCHAIN, BODY.pack(NFPROTO[family], 0, 0))))
    except ReadError as error:
        raise Unsupported(f"the chains of nf_tables for {family} cannot be read: {error.strerror}") from error
    except OSError:
        return frozenset()


def _names(chain: bytes) -> tuple[str, str]:
    _, attributes = parse(chain, BODY)
    table, name = (attributes.get(kind, b"").rstrip(b"\0") for kind in (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME))
    return table.decode(errors="replace"), name.decode(errors="replace")
