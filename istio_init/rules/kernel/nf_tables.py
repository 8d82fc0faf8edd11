"""Lists the chains in nf_tables, whichever program created them, by netlink.

`nft list` would cost a process on every pod start.
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
    """Return the chains of one family in nf_tables, as `(table, chain)`.

    The result is empty if the kernel has no nf_tables or does not permit the request: there is nothing this process could
    change.

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
