"""Reads the rules of python-iptables' tables, whatever third parties have put there."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from istio_init.rules.kernel import iptc_library
from istio_init.rules.matches import MATCHES
from istio_init.rules.model import OpaqueRule
from istio_init.rules.render.iptables import parse_rule

UNREADABLE = "(matches that python-iptables cannot read)"
# linux/netfilter/x_tables.h: where struct xt_entry_target has its name, and XT_EXTENSION_MAXNAMELEN.
TARGET_NAME, TARGET_NAME_BYTES = 2, 29
ANYTHING = (None, "ip", "0.0.0.0/0.0.0.0", "::/0")


class Raw(NamedTuple):
    """A rule in libiptc's binary form, and the mask of bits to compare when it is deleted."""

    entry: bytes
    mask: bytes


def library_errors() -> tuple[type[Exception], ...]:
    """List what python-iptables raises where the kernel refuses something, or an extension is not there."""
    iptc = iptc_library.load()
    return (iptc.IPTCError, iptc.XTablesError)


class _Name(str):
    """The name of a chain: any bytes, whereas python-iptables takes all names for UTF-8."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return super().encode("utf-8", "surrogateescape")


def chains_of(table: Any) -> list[str]:
    """List the names of a table's chains; bytes that are not UTF-8 are surrogates in them."""
    library, handle = table._iptc, table._handle  # noqa: SLF001 - there is no public access to the bytes
    names: list[str] = []
    name = library.iptc_first_chain(handle)
    while name:
        names.append(_Name(_decoded(name)))
        name = library.iptc_next_chain(handle)
    return names


def entries_of(table: Any, chain: str) -> list[Any]:
    """List the rules of a chain in libiptc's form."""
    entries: list[Any] = []
    entry = table.first_rule(chain)
    while entry:
        entries.append(entry)
        entry = table.next_rule(entry)
    return entries


def read_rule(table: Any, chain: str, entry: Any) -> tuple[str, Raw | None]:
    """Return a rule in the syntax of iptables-save, and in binary form where the model cannot express it.

    Third-party rules may have anything in them, including extensions that are not installed here. Nothing needs to be known
    of such a rule except where it leads.
    """
    try:
        rule = table.create_rule(entry, iptc_library.load().Chain(table, chain))
        text = _text(rule)
        return text, Raw(bytes(rule.rule), bytes(rule.mask)) if isinstance(parse_rule(text), OpaqueRule) else None
    except _parsing_errors():
        target: bytes = table.get_target(entry) or b""
        return f"{UNREADABLE} -j {_decoded(target)}", _raw_entry(entry, target)


def _parsing_errors() -> tuple[type[Exception], ...]:
    """List what python-iptables, which checks nothing, can raise for an entry that it does not know."""
    return (*library_errors(), ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def _raw_entry(entry: Any, target: bytes) -> Raw:
    """Copy an entry; libiptc takes a jump by the name of its target, which the kernel does not keep there."""
    raw = bytearray(ctypes.string_at(ctypes.addressof(entry), entry.next_offset))
    name = entry.target_offset + TARGET_NAME
    raw[name : name + TARGET_NAME_BYTES] = target.ljust(TARGET_NAME_BYTES, b"\0")
    return Raw(bytes(raw), b"\xff" * len(raw))


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _text(rule: Any) -> str:
    """Return a python-iptables rule in the syntax of iptables-save.

    Raises:
        ValueError: it has a netmask that is not a prefix, which python-iptables mistakes for another one in IPv6.
    """
    for mask in (rule.get_ip().smsk, rule.get_ip().dmsk):
        inverted = ~int.from_bytes(bytes(mask), "big", signed=True)
        if inverted & (inverted + 1):
            raise ValueError("a netmask is not a prefix")
    words = []
    for known in MATCHES.values():
        value = getattr(rule, known.attribute) if known.attribute else None
        if value not in ANYTHING:
            words += [*(["!"] * value.startswith("!")), known.option, known.native_text(value.removeprefix("!"))]
    for match in rule.matches:
        words += ["-m", match.name, _options(match)]
    words += ["-g" if rule.target.goto else "-j", rule.target.name, _options(rule.target)]
    return " ".join(filter(None, words))


def _options(extension: Any) -> str:
    """Return the options of a match or a target as the extension itself prints them for iptables-save."""
    saved: bytes | None = extension._get_saved_buf(extension.rule.get_ip())  # noqa: SLF001 - the public form takes only UTF-8
    return _decoded(saved or b"").strip()
