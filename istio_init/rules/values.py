"""From text to values: each parser takes what a user wrote and where, and raises `InvalidInput` for what is not allowed."""

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
INTERFACE_BYTES = 15  # linux/if.h: IFNAMSIZ, less the zero byte
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
        canonical: such as `10.0.0.0/8`.
        written: as the user wrote it.
        masked: whether host bits had to be masked.
    """

    canonical: str
    written: str
    masked: bool


def cidr(text: str, where: str) -> Cidr:
    """Read a CIDR or a bare address.

    Args:
        text: the user's.
        where: the flag or variable that gave it.

    Raises:
        InvalidInput: `text` is neither.
    """
    address_text, slash, prefix_text = text.partition("/")
    if ":" in address_text:
        return _ipv6_cidr(text, where)
    allowed = IPV4_CIDR
    if address_text == ALL:
        raise InvalidInput(where, f"{text!r} is not possible here", allowed)
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
    """Return an address in dotted form as a number of 32 bits; None if it is none, such as `010.0.0.1` and `10.1`.

    It takes a tenth of the time of `ipaddress`, which of all that an apply of thousands of CIDRs did was the longest part.
    """
    try:
        a, b, c, d = text.split(".")
        return OCTETS[a] << 24 | OCTETS[b] << 16 | OCTETS[c] << 8 | OCTETS[d]
    except (KeyError, ValueError):
        return None


def ipv4_text(number: int) -> str:
    """Return an address of 32 bits in dotted form."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def listed(parse: Callable[[str, str], T], *, all_allowed: bool = False) -> Callable[[str, str], tuple[T | str, ...]]:
    """Make the parser of a comma-separated list, which drops repetitions.

    Args:
        parse: reads one item.
        all_allowed: whether `*` alone may stand for everything; it is read as `("*",)`.
    """

    def parse_list(text: str, where: str) -> tuple[T | str, ...]:
        words = [word for word in map(str.strip, text.split(",")) if word]
        if ALL in words and all_allowed:
            if len(words) > 1:
                raise InvalidInput(where, f"{text!r} has '*' among other items", "'*' alone, or a list without it")
            return (ALL,)
        return tuple(dict.fromkeys(parse(word, where) for word in words))

    return parse_list


def owner(text: str, where: str) -> int | str:
    """Read the id of a user or group; anything that is not a number is a name, which is returned unchanged."""
    found = number(text)
    if text == ALL:
        raise InvalidInput(where, f"{text!r} is not possible here", f"ids 0..{ID_MAX} and names")
    if found is not None and found > ID_MAX:
        raise InvalidInput(where, f"{text!r} is too large for an id", f"0..{ID_MAX}")
    return text if found is None else found


def number(text: str) -> int | None:
    """Read plain decimal digits; `int` alone would also take signs, underscores, spaces and other scripts' digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(UINT32_MAX)) else None


def port(text: str, where: str) -> int:
    """Read a port."""
    port = number(text)
    if port is None or not 1 <= port <= PORT_MAX:
        raise InvalidInput(where, f"{text!r} is not a port", f"1..{PORT_MAX}")
    return port


def port_range(text: str, where: str) -> str:
    """Read a port or a range of them, in the form `first:last`."""
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
    """Read an interception mode."""
    if text not in Mode.__members__:
        raise InvalidInput(where, f"{text!r} is not a mode{_nearest(text)}", " or ".join(Mode))
    return Mode[text]


def _nearest(text: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(text.upper(), list(Mode), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def mark(text: str, where: str) -> int:
    """Read a packet mark, decimal or hexadecimal."""
    mark = int(text, 16) if _is_hexadecimal(text) else number(text)
    if mark is None or not 1 <= mark <= UINT32_MAX:
        raise InvalidInput(where, f"{text!r} is not a packet mark", f"1..{UINT32_MAX}, or 0x1..0xffffffff")
    return mark


def _is_hexadecimal(text: str) -> bool:
    digits = text.removeprefix("0x")
    return digits != text and 0 < len(digits) <= len("ffffffff") and all(c in "0123456789abcdefABCDEF" for c in digits)


def route_table(text: str, where: str) -> int:
    """Read the number of a routing table that is not the system's own."""
    table = number(text)
    if table is None or not 1 <= table <= UINT32_MAX or table in RESERVED_ROUTE_TABLES:
        allowed = f"1..{UINT32_MAX}, but not 253..255, which the system uses"
        raise InvalidInput(where, f"{text!r} is not a routing table of our own", allowed)
    return table


def interface(text: str, where: str) -> str:
    """Read the name of an interface; a + at its end stands for anything (iptables(8))."""
    plain = text.isprintable() and not any(character.isspace() or character in SPECIAL for character in text)
    if not plain or text.startswith("-") or text == "+" or not 1 <= len(text.encode()) <= INTERFACE_BYTES:
        allowed = (
            f"1..{INTERFACE_BYTES} bytes without white space, quotes, / and what else is special to a shell, not beginning "
            "with -; a + at the end stands for anything"
        )
        raise InvalidInput(where, f"{text!r} is not the name of an interface", allowed)
    return text


def boolean(text: str, where: str) -> bool:
    """Read a truth value."""
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
