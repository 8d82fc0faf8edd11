"""The expressions of nf_tables' rules in the words of iptables-save, as far as a rule of ours, or a jump to one, needs them.

What is not understood is written out as numbers in brackets, so that two rules read the same only if they are the same.
Counters do not count. Expressions: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct

from istio_init.core.light import TYPE_CHECKING, IntEnum, NamedTuple
from istio_init.rules.kernel.netlink import ATTRIBUTE, NLA_TYPE_MASK, records
from istio_init.rules.matches import TARGETS as IPTABLES_TARGETS
from istio_init.rules.model import UINT32_MAX, Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Iterator

NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
NFTA_IMMEDIATE_DATA = 2
NFTA_META_DREG, NFTA_META_KEY = 1, 2
NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN = 1, 2, 3, 4
NFTA_CMP_OP, NFTA_CMP_DATA = 2, 3
NFTA_XT_NAME, NFTA_XT_INFO = 1, 3  # NFTA_MATCH_* and NFTA_TARGET_*
NFT_META_MARK, NFT_META_L4PROTO = 3, 16
NFT_PAYLOAD_NETWORK_HEADER = 1
NFT_CMP_EQ = 0
PROTOCOL_OF_IPV4 = (NFT_PAYLOAD_NETWORK_HEADER, 9, 1)  # base, offset and length of the protocol in an IPv4 header
PROTOCOLS = {6: "tcp", 17: "udp"}
# Verdicts are negative, apart from those of netfilter itself: linux/netfilter.h.
VERDICTS = {0: "DROP", 1: "ACCEPT", 3: "QUEUE", -3: "jump", -4: "goto", -5: "RETURN"}
# Expressions that are the target of a rule, with the targets of iptables that do the same.
TARGETS = {
    "nat": "DNAT",
    "redir": "REDIRECT",
    "masq": "MASQUERADE",
    "reject": "REJECT",
    "queue": "NFQUEUE",
    "tproxy": "TPROXY",
}
NUMBER, HOST_NUMBER = struct.Struct("!I"), struct.Struct("=I")
MARK = struct.Struct("=II")  # xt_mark_tginfo2: mark, mask
CONNMARK = struct.Struct("=IIIBBBx")  # xt_connmark_tginfo2: mark, its mask, the packet's mask, shifts, mode
SAVED = CONNMARK.pack(0, UINT32_MAX, UINT32_MAX, 0, 0, 1)  # the packet's mark, whole; linux/netfilter/xt_connmark.h


class Loaded(IntEnum):
    """What an expression may have loaded for the next one to compare."""

    OTHER = 0
    PROTOCOL = 1
    MARK = 2


LOADED = {NFT_META_L4PROTO: Loaded.PROTOCOL, NFT_META_MARK: Loaded.MARK}


class Described(NamedTuple):
    """A rule in words.

    Attributes:
        text: as iptables-save would print it, or with what is not understood in brackets.
        protocol: the number of the IP protocol that it asks for, 0 for none.
    """

    text: str
    protocol: int


def describe(listed: bytes) -> Described:
    """Put the expressions of a rule (the attribute NFTA_RULE_EXPRESSIONS) into words.

    Raises:
        ReadError: they are malformed.
    """
    conditions: list[str] = []
    goals: list[str] = []
    protocol = 0
    loaded = Loaded.OTHER  # what the last expression loaded
    for name, data in expressions(listed):
        if name == "counter":
            continue
        value = _compared(data) if name == "cmp" else b""
        wanted, loaded = loaded, _loaded(name, data)
        if wanted is Loaded.PROTOCOL and len(value) == 1 and value[0] in PROTOCOLS:
            protocol = value[0]
            conditions[-1] = f"-p {PROTOCOLS[protocol]}"
        elif wanted is Loaded.MARK and len(value) == HOST_NUMBER.size:
            conditions[-1] = f"-m mark --mark {HOST_NUMBER.unpack(value)[0]:#x}"
        elif goal := describe_goal(name, data):
            goals.append(goal)
        elif comment := _comment(name, data):
            conditions.append(f"-m comment --comment {comment}")
        else:
            conditions.append(f"[{name} {data.hex()}]")
    return Described(" ".join((*conditions, *goals)), protocol)


def expressions(nested: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and data of each expression of a rule."""
    for _, element in records(nested, ATTRIBUTE):
        found = parts(element)
        yield string(found.get(NFTA_EXPR_NAME, b"")), found.get(NFTA_EXPR_DATA, b"")


def parts(data: bytes) -> dict[int, bytes]:
    """Return the attributes that are nested in another one."""
    return {kind & NLA_TYPE_MASK: value for (kind,), value in records(data, ATTRIBUTE)}


def _loaded(name: str, data: bytes) -> Loaded:
    found = parts(data)
    if name == "meta" and NFTA_META_DREG in found:
        return LOADED.get(number(found, NFTA_META_KEY) or 0, Loaded.OTHER)
    wanted = (NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN)
    is_protocol = name == "payload" and tuple(number(found, kind) for kind in wanted) == PROTOCOL_OF_IPV4
    return Loaded.PROTOCOL if is_protocol else Loaded.OTHER


def _compared(data: bytes) -> bytes:
    """Return the value that a comparison asks for; nothing if it asks for any other."""
    found = parts(data)
    value = parts(found.get(NFTA_CMP_DATA, b"")).get(NFTA_DATA_VALUE, b"")
    return value if number(found, NFTA_CMP_OP) == NFT_CMP_EQ else b""


def describe_goal(name: str, data: bytes) -> str:
    """Return the target of a rule in iptables' words; an empty text if the expression is a condition."""
    found = parts(data)
    if name == "immediate":
        return describe_verdict(parts(found.get(NFTA_IMMEDIATE_DATA, b"")).get(NFTA_DATA_VERDICT, b""))
    if name == "target":
        target, info = string(found.get(NFTA_XT_NAME, b"")), found.get(NFTA_XT_INFO, b"")
        if target == "MARK" and len(info) >= MARK.size:
            return "-j MARK --set-xmark {:#x}/{:#x}".format(*MARK.unpack_from(info))
        if target == "CONNMARK" and info == SAVED:
            return f"-j {IPTABLES_TARGETS[TargetKind.SAVE_MARK].text(Target(TargetKind.SAVE_MARK))}"
        return f"[{target} {info.hex()}] -j {target}"
    return f"[{name} {data.hex()}] -j {TARGETS[name]}" if name in TARGETS else ""


def describe_verdict(data: bytes) -> str:
    """Return a verdict (the attribute NFTA_DATA_VERDICT) in iptables' words; an empty text if there is none."""
    verdict = parts(data)
    if NFTA_VERDICT_CODE not in verdict:
        return ""
    (code,) = struct.unpack("!i", verdict[NFTA_VERDICT_CODE])
    chain = string(verdict.get(NFTA_VERDICT_CHAIN, b""))
    return f"-{'g' if VERDICTS.get(code) == 'goto' else 'j'} {chain or VERDICTS.get(code, code)}"


def _comment(name: str, data: bytes) -> str:
    """Return the comment of iptables' extension of that name, if it is one word; else an empty text."""
    found = parts(data)
    if name != "match" or string(found.get(NFTA_XT_NAME, b"")) != "comment":
        return ""
    text = found.get(NFTA_XT_INFO, b"").partition(b"\0")[0].decode(errors="replace")
    return text if text.replace("-", "").replace("_", "").isalnum() else ""


def number(found: dict[int, bytes], kind: int) -> int | None:
    """Return an attribute that is a number; None if it is missing."""
    value = found.get(kind, b"")
    return NUMBER.unpack(value)[0] if len(value) == NUMBER.size else None


def string(data: bytes) -> str:
    """Return the text before the first zero byte."""
    return data.partition(b"\0")[0].decode(errors="replace")
