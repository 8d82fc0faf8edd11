"""Which chains nf_tables holds, asked of the kernel itself, so that a backend sees what other programs than its own made.

`nft list` would start a program on each start of a pod, and pyroute2 takes a quarter of a second to import.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from istio_init.rules.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_NETFILTER = 12  # linux/netlink.h, with the next four
NLM_F_REQUEST = 0x1
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NFT_MSG_GETCHAIN = 10 << 8 | 4  # linux/netfilter/nfnetlink.h: NFNL_SUBSYS_NFTABLES; nf_tables.h
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3  # linux/netfilter/nf_tables.h
NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}  # linux/netfilter.h

MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
BODY = struct.Struct("!BBH")  # nfgenmsg: family, version, resource
ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
BUFFER = 1 << 18  # bytes; the kernel fills far less at a time
PATIENCE = 5.0  # seconds for an answer


def chains(family: Family) -> frozenset[tuple[str, str]]:
    """List the chains that one family has in nf_tables, whichever program made them, as `(table, chain)`.

    A kernel without nf_tables, or one that does not let this process ask, has none that could be changed.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
            kernel.settimeout(PATIENCE)
            size = MESSAGE.size + BODY.size
            kernel.send(
                MESSAGE.pack(size, NFT_MSG_GETCHAIN, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + BODY.pack(NFPROTO[family], 0, 0)
            )
            return frozenset(_answers(kernel))
    except OSError:
        return frozenset()


def _answers(kernel: socket.socket) -> Iterator[tuple[str, str]]:
    while True:
        data = kernel.recv(BUFFER)
        while data:
            size, kind, *_ = MESSAGE.unpack_from(data)
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                return
            names = _attributes(data[MESSAGE.size + BODY.size : size])
            yield names.get(NFTA_CHAIN_TABLE, ""), names.get(NFTA_CHAIN_NAME, "")
            data = data[_aligned(size) :]


def _attributes(data: bytes) -> dict[int, str]:
    """Read the attributes that are strings; others come out as whatever their bytes spell."""
    found = {}
    while data:
        size, kind = ATTRIBUTE.unpack_from(data)
        found[kind] = data[ATTRIBUTE.size : size].rstrip(b"\0").decode(errors="replace")
        data = data[_aligned(size) :]
    return found


def _aligned(size: int) -> int:
    return (size + 3) & ~3  # linux/netlink.h: NLMSG_ALIGN
