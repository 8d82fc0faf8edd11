"""Parsers of option values: each takes the text and the flag or variable that gave it, and raises `InvalidInput`."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.model import UINT32_MAX, Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

ALL = "*"
IPV4_CIDR = "an IPv4 address with a prefix length of 0..32, such as 10.0.0.0/8"
PORT_MAX = 65535
PROTOCOLS = ("tcp", "udp")
ID_MAX = 4294967294  # 2^32 - 1 is the kernel's "no such id"
IPV4_BITS = 32
OCTETS = {str(octet): octet for octet in range(256)}
LOOPBACK_NETWORK = "127.0.0.0/8"
LOOPBACK_PREFIX = 8
INTERFACE_BYTES = 15  # linux/if.h: IFNAMSIZ, minus the terminating zero byte
SPECIAL = frozenset("/\"'`\\$&|;<>()*?[]{}!#~")  # to the kernel, a shell, or iptables-restore
RESERVED_ROUTE_TABLES = range(253, 256)  # default, main and local: iproute2's /etc/iproute2/rt_tables
# Go's strconv.ParseBool, which reads these variables in today's tool.
BOOLS = {"1": True, "t": True, "T": True, "true": True, "TRUE": True, "True": True,
         "0": False, "f": False, "F": False, "false": False, "FALSE": False, "False": False}  # fmt: skip


class PortsOfUser(NamedTuple):
    """Destination ports of one user's traffic.

    Attributes:
        protocol: `tcp` or `udp`.
        ports: a port, or a range `first:last`.
        user: an id, or a name.
    """

    protocol: str
    ports: str
    user: int | str

    def __str__(self) -> str:
        """Write it as a user does."""
        return f"{self.protocol}:{self.ports}:{self.user}"


class Cidr(NamedTuple):
    """A network.

    Attributes:
        canonical: normalised text, such as `10.0.0.0/8`.
        written: as the user wrote it.
        masked: whether host bits were set, and have been cleared.
    """

    canonical: str
    written: str
    masked: bool


def cidr(text: str, where: str) -> Cidr:
    """Parse a CIDR or a bare address.

    Args:
        text: as the user wrote it.
        where: the flag or variable that gave it, for the error.

    Raises:
        InvalidInput: `text` is neither.
    """
    address_text, slash, prefix_text = text.partition("/")
    if ":" in address_text:
        return _ipv6_cidr(text, where)
    allowed = IPV4_CIDR
    if address_text == ALL:
        raise InvalidInput(where, f"{text!r} is not allowed here", allowed)
    address = ipv4_number(address_text)
    if address is None:
        raise InvalidInput(where, f"{text!r} is not a CIDR", allowed)
    prefix = number(prefix_text) if slash else IPV4_BITS
    if prefix is None or prefix > IPV4_BITS:
        raise InvalidInput(where, f"{text!r} has no valid prefix length", allowed)
    network = address >> (IPV4_BITS - prefix) << (IPV4_BITS - prefix)
    # Formatting is the slow part for thousands of CIDRs, and most are canonical already.
    canonical = address_text if network == address else ipv4_text(network)
    return Cidr(f"{canonical}/{prefix}", text, network != address)


def _ipv6_cidr(text: str, where: str) -> Cidr:
    from ipaddress import IPv6Interface

    allowed = "an IPv6 address with a prefix length of 0..128, such as fd00::/8"
    try:
        found = IPv6Interface(text)
    except ValueError:
        raise InvalidInput(where, f"{text!r} is not a CIDR", allowed) from None
    if found.scope_id is not None:
        raise InvalidInput(where, f"{text!r} names an interface", allowed)
    return Cidr(str(found.network), text, found.ip != found.network.network_address)


def ipv4_number(text: str) -> int | None:
    """Return a dotted-decimal IPv4 address as a 32-bit number; None if it is not canonical, such as `010.0.0.1` or `10.1`.

    It takes a tenth of the time of `ipaddress`, which dominated the run time of an apply with thousands of CIDRs.
    """
    try:
        a, b, c, d = text.split(".")
        return OCTETS[a] << 24 | OCTETS[b] << 16 | OCTETS[c] << 8 | OCTETS[d]
    except (KeyError, ValueError):
        return None


def ipv4_text(number: int) -> str:
    """Return a 32-bit IPv4 address in dotted-decimal form."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def listed(parse: Callable[[str, str], T], *, all_allowed: bool = False) -> Callable[[str, str], tuple[T | str, ...]]:
    """Return a parser for a comma-separated list, which drops duplicates.

    Args:
        parse: parses one item.
        all_allowed: whether a lone `*` is accepted, for everything; it is returned as `("*",)`.
    """

    def parse_list(text: str, where: str) -> tuple[T | str, ...]:
        items = [item for item in map(str.strip, text.split(",")) if item]
        if ALL in items and all_allowed:
            if len(items) > 1:
                raise InvalidInput(where, f"{text!r} has '*' among other items", "'*' alone, or a list without it")
            return (ALL,)
        return tuple(dict.fromkeys(parse(item, where) for item in items))

    return parse_list


def owner(text: str, where: str) -> int | str:
    """Parse the id of a user or group; text that is not a number is a name, and is returned unchanged."""
    found = number(text)
    if text == ALL:
        raise InvalidInput(where, f"{text!r} is not allowed here", f"ids 0..{ID_MAX} and names")
    if found is not None and found > ID_MAX:
        raise InvalidInput(where, f"{text!r} is too large for an id", f"0..{ID_MAX}")
    return text if found is None else found


def number(text: str) -> int | None:
    """Parse ASCII decimal digits, else return None; `int` would also accept signs, underscores, spaces and other digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(UINT32_MAX)) else None


def port(text: str, where: str) -> int:
    """Parse a port, 1..65535."""
    port = number(text)
    if port is None or not 1 <= port <= PORT_MAX:
        raise InvalidInput(where, f"{text!r} is not a port", f"1..{PORT_MAX}")
    return port


def port_range(text: str, where: str) -> str:
    """Parse a port or a range, `first-last` or `first:last`; return `port` or `first:last`."""
    first, dash, last = text.replace("-", ":", 1).partition(":")
    low = number(first)
    high = number(last) if dash else low
    if low is None or high is None or not 1 <= low <= high <= PORT_MAX:
        allowed = f"ports 1..{PORT_MAX} and ranges such as 8000-8100, comma-separated"
        raise InvalidInput(where, f"{text!r} is not a port or range", allowed)
    return str(low) if low == high else f"{low}:{high}"


def ports_of_user(text: str, where: str) -> PortsOfUser:
    """Read a protocol, a port or a range of them, and a user: `tcp:5432:1000`."""
    protocol, _, rest = text.partition(":")
    ports, colon, user = rest.rpartition(":")
    if protocol not in PROTOCOLS or not colon or not user:
        allowed = "tcp|udp:PORT:UID, comma-separated, such as tcp:5432:1000; PORT may be a range, and UID a name"
        raise InvalidInput(where, f"{text!r} is not a protocol, a port and a user", allowed)
    try:
        return PortsOfUser(protocol, port_range(ports, where), owner(user, where))
    except InvalidInput as error:
        raise InvalidInput(where, f"{text!r}: {error.problem}", error.allowed) from None


def mode(text: str, where: str) -> Mode:
    """Parse an interception mode."""
    if text not in Mode.__members__:
        raise InvalidInput(where, f"{text!r} is not a mode{_nearest(text)}", " or ".join(Mode))
    return Mode[text]


def _nearest(text: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(text.upper(), list(Mode), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def mark(text: str, where: str) -> int:
    """Parse a packet mark, decimal or, with `0x`, hexadecimal."""
    mark = int(text, 16) if _is_hexadecimal(text) else number(text)
    if mark is None or not 1 <= mark <= UINT32_MAX:
        raise InvalidInput(where, f"{text!r} is not a packet mark", f"1..{UINT32_MAX}, or 0x1..0xffffffff")
    return mark


def _is_hexadecimal(text: str) -> bool:
    digits = text.removeprefix("0x")
    return digits != text and 0 < len(digits) <= len("ffffffff") and all(c in "0123456789abcdefABCDEF" for c in digits)


def route_table(text: str, where: str) -> int:
    """Parse the number of a routing table other than default, main and local."""
    table = number(text)
    if table is None or not 1 <= table <= UINT32_MAX or table in RESERVED_ROUTE_TABLES:
        allowed = f"1..{UINT32_MAX}, except 253..255, which the system uses"
        raise InvalidInput(where, f"{text!r} is not a usable routing table", allowed)
    return table


def interface(text: str, where: str) -> str:
    """Parse the name of an interface; a trailing `+` is a wildcard (iptables(8))."""
    plain = text.isprintable() and not any(character.isspace() or character in SPECIAL for character in text)
    if not plain or text.startswith("-") or text == "+" or not 1 <= len(text.encode()) <= INTERFACE_BYTES:
        allowed = (
            f"1..{INTERFACE_BYTES} bytes without whitespace, quotes, / and other characters special to a shell, not "
            "starting with -; a trailing + is a wildcard"
        )
        raise InvalidInput(where, f"{text!r} is not an interface name", allowed)
    return text


def boolean(text: str, where: str) -> bool:
    """Parse a boolean, as Go's strconv.ParseBool does."""
    if text not in BOOLS:
        raise InvalidInput(where, f"{text!r} is neither true nor false", ", ".join(BOOLS))
    return BOOLS[text]


def loopback(text: str, where: str) -> Cidr:
    """Read a part of loopback in IPv4."""
    found = cidr(text, where)
    address, _, prefix = found.canonical.partition("/")
    if not address.startswith("127.") or int(prefix) < LOOPBACK_PREFIX:
        raise InvalidInput(where, f"{text!r} is not a part of loopback", f"a CIDR inside {LOOPBACK_NETWORK}")
    return found
