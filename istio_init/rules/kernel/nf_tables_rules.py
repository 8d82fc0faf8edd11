"""Third-party rules of nf_tables in the words of iptables-save, so that they can be compared with a plan.

Unlike `istio_init.rules.kernel.nf_tables_text`, which is for rules of ours, this goes for what a rule means: one with a set
or a verdict map becomes several. A condition that is not understood is in brackets. Where the program nft is installed,
people are shown its listing instead. Expressions: linux/netfilter/nf_tables.h, and nft(8) on how it uses them.
"""

from __future__ import annotations

import struct
import sys
from itertools import product

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.intervals import cidrs_between
from istio_init.rules.kernel.nf_tables_text import (
    NFTA_CMP_DATA,
    NFTA_CMP_OP,
    NFTA_DATA_VALUE,
    NFTA_META_KEY,
    NFTA_PAYLOAD_BASE,
    NFTA_PAYLOAD_LEN,
    NFTA_PAYLOAD_OFFSET,
    NFTA_XT_INFO,
    NFTA_XT_NAME,
    describe_goal,
    describe_verdict,
    expressions,
    number,
    parts,
    string,
)
from istio_init.rules.model import Family, Foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from istio_init.rules.kernel.nf_tables import NativeRule
    from istio_init.rules.kernel.nf_tables_hooks import Element

    Elements = Callable[[str], Sequence[Element]]

LOADS = {"meta": 1, "payload": 1, "ct": 1, "bitwise": 2}  # expressions that load a value, and the attribute that says where
EFFECTS = ("counter", "log", "last", "immediate", "meta", "ct", "payload")  # or they set a value
SREG = 1
NFTA_CT_KEY, NFT_CT_STATE = 2, 0
NFTA_BITWISE_SREG, NFTA_BITWISE_MASK, NFTA_BITWISE_XOR = 1, 4, 5
NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_DREG, NFTA_LOOKUP_FLAGS = 1, 2, 3, 5
NFTA_RANGE_OP, NFTA_RANGE_FROM, NFTA_RANGE_TO = 2, 3, 4
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CMP_LTE, NFT_CMP_GTE, NFT_RANGE_EQ = 0, 1, 3, 5, 0
NFT_REG_VERDICT = 0

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
# What `meta` loads, by its key, in the words of iptables.
METAS = {4: "-i", 5: "-o", 6: "-i", 7: "-o", 10: "-m owner --uid-owner", 11: "-m owner --gid-owner", 16: "-p"}
NFT_META_IIF, NFT_META_OIF, NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_NFPROTO = 4, 5, 6, 7, 15
NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
LOOPBACK_INDEX = 1  # lo's, in every network namespace (loopback_net_init in drivers/net/loopback.c)
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
# Fields of headers, by their base and offset; those of addresses may be loaded in part, for a prefix.
FIELDS = {
    Family.IPV4: {(1, 9): "-p", (1, 12): "-s", (1, 16): "-d", (2, 0): "--sport", (2, 2): "--dport"},
    Family.IPV6: {(1, 6): "-p", (1, 8): "-s", (1, 24): "-d", (2, 0): "--sport", (2, 2): "--dport"},
}
PORT_BYTES, INTERFACE_BYTES = 2, 16
ADDRESS_BYTES = {Family.IPV4: 4, Family.IPV6: 16}
# Bits of `ct state`: NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h.
STATES = {1: "INVALID", 2: "ESTABLISHED", 4: "RELATED", 8: "NEW", 64: "UNTRACKED"}
NATIVE = struct.Struct("=I")
OWNER = struct.Struct("=IIIIBB")  # xt_owner_match_info: first and last uid and gid, which of them count, which are inverted
XT_OWNER_UID, XT_OWNER_GID = 1, 2
MOST_ALTERNATIVES = 64  # rules that one may become

NOTHING = "NOTHING"  # stands for a condition that no packet of the family satisfies


class Loaded(NamedTuple):
    """What a register holds.

    Attributes:
        option: the option of iptables that compares it; "" for a value that is not understood.
        key: of `meta`, its key.
        size: in bytes.
        mask: the bits that were kept of it; empty for all.
    """

    option: str
    key: int = 0
    size: int = 0
    mask: bytes = b""


def words_of(rule: NativeRule, family: Family, elements: Elements) -> list[Foreign]:
    """Put a rule into words: one for each way in which it can match; none if no packet of the family can.

    Args:
        rule: the rule.
        family: whose packets are meant, in tables of the family inet.
        elements: lists the elements of a set of its table.

    Raises:
        ReadError: the rule is malformed.
    """
    reader = _Reader(family, elements)
    for name, data in expressions(rule.expressions):
        reader.add(name, parts(data), data)
    texts = (" ".join(words) for words in reader.alternatives() if NOTHING not in words)
    return [Foreign(text, rule.handle) for text in texts]


class _Reader:
    def __init__(self, family: Family, elements: Elements) -> None:
        self._family = family
        self._elements = elements
        self._registers: dict[int, Loaded] = {}
        self._conditions: list[list[str]] = []  # of each, the alternatives
        self._goals: list[str] = []
        self._least = -1, Loaded(""), b""  # the last condition that a value is at least another one: where, what, and which

    def alternatives(self) -> Iterator[list[str]]:
        count = 1
        for index, some in enumerate(self._conditions):
            count *= len(some)
            if count > MOST_ALTERNATIVES:
                self._conditions[index] = ["[one of many]"]
                count //= len(some)
        for chosen in product(*self._conditions):
            yield [*(word for word in chosen if word), *self._goals]

    def add(self, name: str, found: dict[int, bytes], data: bytes) -> None:
        """Take in the next expression."""
        if name in LOADS and LOADS[name] in found:
            self._registers[number(found, LOADS[name]) or 0] = self._loaded(name, found)
        elif name in CONDITIONS:
            self._conditions.append(CONDITIONS[name](self, found))
        elif name == "match":
            self._conditions.append([_matched(string(found.get(NFTA_XT_NAME, b"")), found.get(NFTA_XT_INFO, b""))])
        elif goal := "-j NOTRACK" if name == "notrack" else describe_goal(name, data).rpartition("] ")[2]:
            self._goals.append(goal)
        elif name not in EFFECTS:
            self._conditions.append([f"[{name}]"])
            self._registers.clear()  # it may load or change a value

    def _loaded(self, name: str, found: dict[int, bytes]) -> Loaded:
        if name == "meta":
            key = number(found, NFTA_META_KEY) or 0
            return Loaded(METAS.get(key, ""), key)
        if name == "ct":
            return Loaded("-m conntrack --ctstate" if number(found, NFTA_CT_KEY) == NFT_CT_STATE else "")
        if name == "bitwise":
            source = self._registers.get(number(found, NFTA_BITWISE_SREG) or 0, Loaded(""))
            mask, xor = (_value(found, kind) for kind in (NFTA_BITWISE_MASK, NFTA_BITWISE_XOR))
            return source._replace(mask=mask) if mask and not any(xor) else Loaded("")
        place = number(found, NFTA_PAYLOAD_BASE) or 0, number(found, NFTA_PAYLOAD_OFFSET) or 0
        return Loaded(FIELDS[self._family].get(place, ""), size=number(found, NFTA_PAYLOAD_LEN) or 0)

    def _register(self, found: dict[int, bytes], kind: int = SREG) -> Loaded:
        return self._registers.get(number(found, kind) or 0, Loaded(""))

    def _compared(self, found: dict[int, bytes]) -> list[str]:
        operation, value = number(found, NFTA_CMP_OP), _value(found, NFTA_CMP_DATA)
        loaded = self._register(found)
        if operation == NFT_CMP_GTE:
            self._least = len(self._conditions), loaded, value
            return self._words(loaded, value, b"\xff" * len(value))
        if operation == NFT_CMP_LTE:
            return self._up_to(loaded, value)
        if operation not in (NFT_CMP_EQ, NFT_CMP_NEQ):
            return ["[cmp]"]
        differs = operation == NFT_CMP_NEQ
        if loaded.key == NFT_META_NFPROTO:
            return ["" if (value[:1] == bytes((NFPROTO[self._family],))) is not differs else NOTHING]
        if "ctstate" in loaded.option and loaded.mask and not any(value):
            states = _states(loaded.mask)  # `ct state & MASK != 0`
            return [f"{'! ' * (not differs)}{loaded.option} {states}" if states else "[ct state]"]
        return [_negate(word) if differs else word for word in self._words(loaded, value, value)[:1]]

    def _up_to(self, loaded: Loaded, value: bytes) -> list[str]:
        """Return the condition that a value is at most another one; with one just before it, they are a range."""
        index, same, least = self._least
        if index != len(self._conditions) - 1 or same != loaded:
            return self._words(loaded, bytes(len(value)), value)
        self._conditions.pop()
        return self._words(loaded, least, value)

    def _ranged(self, found: dict[int, bytes]) -> list[str]:
        first, last = _value(found, NFTA_RANGE_FROM), _value(found, NFTA_RANGE_TO)
        words = self._words(self._register(found), first, last)
        if number(found, NFTA_RANGE_OP) == NFT_RANGE_EQ:
            return words
        return [_negate(words[0])] if len(words) == 1 else ["[range]"]

    def _looked_up(self, found: dict[int, bytes]) -> list[str]:
        loaded = self._register(found, NFTA_LOOKUP_SREG)
        is_map, inverted = NFTA_LOOKUP_DREG in found, bool(number(found, NFTA_LOOKUP_FLAGS))
        if is_map and number(found, NFTA_LOOKUP_DREG) != NFT_REG_VERDICT:
            return ["[map]"]
        words: list[str] = []
        for element in self._elements(string(found.get(NFTA_LOOKUP_SET, b""))):
            verdict = describe_verdict(element.verdict) if is_map else ""
            some = self._words(loaded, element.first, element.last) if element.first else [""]
            words += [f"{word} {verdict}".strip() for word in some]
            if len(words) > MOST_ALTERNATIVES:
                return ["[map] -j VMAP" if is_map else "[set]"]
        if inverted and loaded.option.endswith("port"):
            ports = ",".join(word.split()[-1] for word in words)
            return [f"-m multiport ! {loaded.option}s {ports}"]
        if inverted:
            return [_negate(words[0])] if len(words) == 1 else ["[not in a set]"]
        return words or [NOTHING]

    def _words(self, loaded: Loaded, first: bytes, last: bytes) -> list[str]:
        """Return the conditions that a value is between two values, one of which has to hold."""
        option = loaded.option
        if option in ("-s", "-d"):
            return self._addresses(loaded, first, last)
        if not loaded.mask:
            if option in ("--sport", "--dport") and len(first) == len(last) == PORT_BYTES:
                low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
                return [f"-m tcp {option} {low}" if low == high else f"-m tcp {option} {low}:{high}"]
            if "owner" in option and len(first) == len(last) == NATIVE.size:
                ids = range(NATIVE.unpack(first)[0], NATIVE.unpack(last)[0] + 1)
                return [f"{option} {one}" for one in ids] if len(ids) <= MOST_ALTERNATIVES else ["[owner]"]
            if first == last:
                return [_single(loaded, first) or f"[{option or 'condition'}]"]
        return [f"[{option or 'condition'}]"]

    def _addresses(self, loaded: Loaded, first: bytes, last: bytes) -> list[str]:
        size = ADDRESS_BYTES[self._family]
        if loaded.mask and len(loaded.mask) == len(first) == size and first == last:
            kept = int.from_bytes(loaded.mask, "big")
            hosts = (1 << 8 * size) - 1 - kept
            if hosts & (hosts + 1):  # the mask is not a prefix
                return ["[address]"]
            last = (int.from_bytes(first, "big") | hosts).to_bytes(size, "big")
        elif loaded.mask or not 0 < len(first) == len(last) <= size:
            return ["[address]"]
        low, high = first.ljust(size, b"\0"), last.ljust(size, b"\xff")
        cidrs = cidrs_between(int.from_bytes(low, "big"), int.from_bytes(high, "big"), 8 * size)
        return [f"{loaded.option} {cidr}" for cidr in cidrs]


CONDITIONS = {"cmp": _Reader._compared, "range": _Reader._ranged, "lookup": _Reader._looked_up}  # noqa: SLF001 - its own


def _single(loaded: Loaded, value: bytes) -> str:
    """Return the condition that a value is another one; "" if it is not understood."""
    option = loaded.option
    if loaded.key in (NFT_META_IIF, NFT_META_OIF):
        return f"{option} lo" if int.from_bytes(value, sys.byteorder) == LOOPBACK_INDEX else ""
    if option == "-p" and len(value) == 1:
        return f"-p {PROTOCOLS.get(value[0], value[0])}"
    if "ctstate" in option and len(value) == NATIVE.size and _states(value):
        return f"{option} {_states(value)}"
    if loaded.key in (NFT_META_IIFNAME, NFT_META_OIFNAME) and len(value) <= INTERFACE_BYTES:
        return f"{option} {string(value)}" if b"\0" in value else f"{option} {string(value)}+"
    return ""


def _negate(word: str) -> str:
    if word.startswith("["):
        return word
    if word == NOTHING:
        return ""
    before, dash, option = word.rpartition("--")
    return f"{before}! {dash}{option}" if dash else f"! {word}"


def _states(mask: bytes) -> str:
    bits = int.from_bytes(mask, sys.byteorder)
    return ",".join(name for bit, name in STATES.items() if bits & bit)


def _matched(name: str, info: bytes) -> str:
    """Return the condition of an extension of iptables."""
    if name == "comment":
        return ""
    if name == "owner" and len(info) >= OWNER.size:
        uid, last_uid, gid, last_gid, counted, inverted = OWNER.unpack_from(info)
        if counted == XT_OWNER_UID and uid == last_uid:
            return f"-m owner {'! ' * bool(inverted & XT_OWNER_UID)}--uid-owner {uid}"
        if counted == XT_OWNER_GID and gid == last_gid:
            return f"-m owner {'! ' * bool(inverted & XT_OWNER_GID)}--gid-owner {gid}"
    return f"[{name}]"


def _value(found: dict[int, bytes], kind: int) -> bytes:
    return parts(found.get(kind, b"")).get(NFTA_DATA_VALUE, b"")
