"""The base chains of nf_tables in the order in which packets pass them, and the rules and sets of their tables.

Only what is asked for is read from the kernel, because most pods have no chain but ours.
"""

from __future__ import annotations

import struct

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.kernel.netlink import ATTRIBUTE, attribute, parse, records
from istio_init.rules.kernel.nf_tables import BODY, NFPROTO, NFPROTO_INET, dump, names_of, rule_of, text
from istio_init.rules.kernel.nf_tables_text import NFTA_DATA_VALUE, NFTA_DATA_VERDICT, number, parts, string
from istio_init.rules.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.kernel.nf_tables import NativeRule

# linux/netfilter/nf_tables.h
NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSETELEM = (10 << 8 | one for one in (1, 4, 7, 13))
NFTA_TABLE_NAME, NFTA_TABLE_HANDLE = 1, 4
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 1, 3, 4, 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE = 1
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS = 1, 2, 3
NFT_SET_ELEM_INTERVAL_END = 1
NF_DROP = 0  # linux/netfilter.h
HOOKS = {0: "PREROUTING", 1: "INPUT", 2: "FORWARD", 3: "OUTPUT", 4: "POSTROUTING"}  # nf_inet_hooks
INET, OF_FAMILY = "inet", {Family.IPV4: "ip", Family.IPV6: "ip6"}
PROTOCOLS = {INET: NFPROTO_INET, **{name: NFPROTO[family] for family, name in OF_FAMILY.items()}}
SIGNED = struct.Struct("!i")


class NativeChain(NamedTuple):
    """A base chain.

    Attributes:
        family: `ip`, `ip6` or `inet`.
        table: its table.
        name: its name.
        kind: its type: `filter`, `nat` or `route`.
        hook: the hook, by the name of iptables' chain there.
        priority: chains with a lower one come first.
        drops: whether its policy is to drop.
    """

    family: str
    table: str
    name: str
    kind: str
    hook: str
    priority: int
    drops: bool


class Element(NamedTuple):
    """An element of a set or verdict map.

    Attributes:
        first: its value, or the first of an interval; empty for the element that stands for all others.
        last: the last of an interval.
        verdict: the attribute NFTA_DATA_VERDICT; empty in a set.
    """

    first: bytes
    last: bytes
    verdict: bytes


def base_chains(family: Family) -> list[NativeChain]:
    """List the base chains that packets of a family pass, in no particular order.

    Raises:
        NotPermitted: this process may not ask.
        Unsupported: the kernel's answer could not be read.
    """
    found = []
    for name in (OF_FAMILY[family], INET):
        for body in dump(NFT_MSG_GETCHAIN, PROTOCOLS[name], f"chains of nf_tables for {family}"):
            _, attributes = parse(body, BODY)
            hook = parts(attributes.get(NFTA_CHAIN_HOOK, b""))
            where = HOOKS.get(number(hook, NFTA_HOOK_HOOKNUM) or 0) if hook else None
            if where is not None and NFTA_HOOK_PRIORITY in hook:
                table, chain = names_of(body, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME)
                (priority,) = SIGNED.unpack(hook[NFTA_HOOK_PRIORITY])
                drops = number(attributes, NFTA_CHAIN_POLICY) == NF_DROP
                found.append(
                    NativeChain(name, table, chain, string(attributes.get(NFTA_CHAIN_TYPE, b"")), where, priority, drops)
                )
    return found


def table_handles(family: Family) -> dict[tuple[str, str], int]:
    """Return a number for each table, by family and name; of two tables, that of the later one is higher.

    Raises:
        NotPermitted, Unsupported: as for `base_chains`.
    """
    handles = {}
    for name in (OF_FAMILY[family], INET):
        for body in dump(NFT_MSG_GETTABLE, PROTOCOLS[name], f"tables of nf_tables for {family}"):
            _, attributes = parse(body, BODY)
            table, _ = names_of(body, NFTA_TABLE_NAME, NFTA_TABLE_NAME)
            handles[name, table] = int.from_bytes(attributes.get(NFTA_TABLE_HANDLE, b""), "big")
    return handles


def rules_of(family: str, table: str) -> list[NativeRule]:
    """List the rules of one table, those of each chain in order.

    Args:
        family: `ip`, `ip6` or `inet`.
        table: its name.

    Raises:
        NotPermitted, Unsupported: as for `base_chains`.
    """
    asked = attribute(NFTA_RULE_TABLE, text(table))  # kernels before 4.12 list the rules of all tables
    listed = dump(NFT_MSG_GETRULE, PROTOCOLS[family], f"rules of table {table} of nf_tables", asked)
    return [rule for rule in map(rule_of, listed) if rule.table == table]


def elements_of(family: str, table: str, name: str) -> list[Element]:
    """List the elements of a set or map, in order.

    Args:
        family: `ip`, `ip6` or `inet`.
        table: its table.
        name: its name; sets without a name have one for the kernel.

    Raises:
        NotPermitted, Unsupported: as for `base_chains`.
    """
    asked = attribute(NFTA_SET_ELEM_LIST_TABLE, text(table)) + attribute(NFTA_SET_ELEM_LIST_SET, text(name))
    found = []
    for body in dump(NFT_MSG_GETSETELEM, PROTOCOLS[family], f"set {name} of table {table} of nf_tables", asked):
        _, attributes = parse(body, BODY)
        for _, element in records(attributes.get(NFTA_SET_ELEM_LIST_ELEMENTS, b""), ATTRIBUTE):
            found.append(parts(element))
    return sorted(_intervals(found))


def _intervals(listed: list[dict[int, bytes]]) -> Iterator[Element]:
    """Join intervals: the kernel lists the value after an interval's last one as an element of its own."""
    values = [parts(one.get(NFTA_SET_ELEM_KEY, b"")).get(NFTA_DATA_VALUE, b"") for one in listed]
    is_end = [bool((number(one, NFTA_SET_ELEM_FLAGS) or 0) & NFT_SET_ELEM_INTERVAL_END) for one in listed]
    ends = sorted(value for value, ends_one in zip(values, is_end, strict=True) if ends_one)
    for one, first, ends_one in zip(listed, values, is_end, strict=True):
        if ends_one:
            continue
        verdict = parts(one.get(NFTA_SET_ELEM_DATA, b"")).get(NFTA_DATA_VERDICT, b"")
        last = first
        if any(is_end) and first:
            after = next((end for end in ends if end > first), b"")
            highest = b"\xff" * len(first)
            last = (int.from_bytes(after, "big") - 1).to_bytes(len(first), "big") if after else highest
        yield Element(first, last, verdict)
