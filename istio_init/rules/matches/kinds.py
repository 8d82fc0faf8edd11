"""The base classes for kinds of matches and targets, which the other modules of this package implement.

Every pod start imports this package, so `re`, `ipaddress` and the like are imported only by the functions that need them.
"""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.model import Match, MatchKind, Table, Target, TargetKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Literal

    from istio_init.rules.packet import Packet

Value = int | str
Pairs = tuple[tuple[str, str], ...]
Json = dict[str, Any]
Span = tuple[Value, Value]  # first and last; both are of the same type

OF_PROTOCOL = "PROTOCOL"  # stands for the extension named after the rule's protocol
PROTOCOLS = ("tcp", "udp")  # protocols with such an extension
ALL_BITS = "/0xffffffff"
HEX = frozenset("0123456789abcdef")


class Unknown(Exception):
    """A listed rule has a part that the model cannot express."""


class MatchType:
    """How one kind of match is written, read and evaluated.

    Attributes:
        kind: the kind.
        scale: the property of a packet that it looks at, such as its destination port, if values of it can be compared.
        option: its option in iptables(8); "" for an extension that has no option.
        extension: the extension of iptables-extensions(8) that has the option, `OF_PROTOCOL` for that of the rule's
            protocol; "" if the option belongs to iptables itself.
        attribute: the attribute of python-iptables' `Rule`, if the option belongs to iptables itself.
        ipv6_mask: the attribute of its `entry.ipv6` that must be set as well.
        modules: `(extension, kernel module)` for extensions whose module is not `xt_NAME`.
        nft: the expression of nft(8), with `{family}` for ip or ip6 and `{protocol}` for the rule's protocol. A match
            without one is omitted, or has a guard.
        nft_modules: `(nft keyword, kernel module)` for keywords that need a module.
        keys: the possible left sides of a condition as `nft -j` lists it: a protocol and its field, or `meta` or `ct` and
            its key.
        joins: whether rules that differ only in this match can be merged into one rule with a set; requires `tidy`.
        guard_condition: the condition of the last rule of a guard (see `istio_init.rules.render.nft`).
        guard_listed: that condition as `nft -j` lists it.
    """

    kind: MatchKind
    scale = ""
    option = ""
    extension = ""
    attribute = ""
    ipv6_mask = ""
    modules: Pairs = ()
    nft = ""
    nft_modules: Pairs = ()
    keys: tuple[tuple[str, str], ...] = ()
    joins = False
    guard_condition = ""
    guard_listed: Json | None = None

    def holds(self, packet: Packet, value: Value) -> bool:
        """Return whether the match holds for a packet, ignoring negation."""
        raise NotImplementedError

    def spans(self, value: Value) -> tuple[Span, ...]:
        """Return a value as intervals, by which two of the same `scale` are compared; none if that is not possible."""
        del value
        return ()

    # iptables

    def text(self, value: Value) -> str:
        """Return a value as iptables-save prints it."""
        return str(value)

    def parse(self, text: str) -> Value | None:
        """Parse a value as iptables-save prints it; return None if the model cannot express it."""
        return text

    def native_text(self, text: str) -> str:
        """Convert a value of `attribute` to the form of iptables-save."""
        return text

    # nft

    def nft_values(self, value: Value) -> tuple[Value, ...]:
        """Split a value into the elements of a set."""
        return (value,)

    def nft_value(self, value: Value) -> str:
        """Return one value in nft syntax.

        Raises:
            Unsupported: nft cannot express it.
        """
        return str(value).lower()

    def tidy(self, values: Iterable[Value]) -> tuple[Value, ...]:
        """Return the values of several rules in order, with the fewest items."""
        return tuple(values)

    def canonical(self, value: Value) -> Value:
        """Return a value in the form in which it is read from a listing."""
        return value

    def is_guarded(self, match: Match) -> bool:
        """Return whether this match needs a guard in nft.

        Raises:
            Unsupported: nft cannot express it.
        """
        del match
        return False

    def guard(self, values: Sequence[Value]) -> tuple[str, str]:
        """Return the condition on which a guard returns, and the reason, for a comment."""
        raise NotImplementedError

    # The listing of nft -j

    def read(self, condition: Json, source: str) -> Iterator[list[Match]]:
        """Read a listed condition.

        Args:
            condition: a `match` of `nft -j`, with `left`, `op` and `right`.
            source: the first part of its key in `keys`.

        Yields:
            a list of alternatives, one of which must hold, for each property that the condition examines.

        Raises:
            Unknown: the model cannot express it.
        """
        del source
        yield self.alternatives(condition)

    def alternatives(self, condition: Json) -> list[Match]:
        """Return one match for each value of a condition; for a negated set, one for the whole set.

        Raises:
            Unknown: the model cannot express it.
        """
        right, negated = condition["right"], condition["op"] == "!="
        if condition["op"] not in ("==", "!="):
            raise Unknown
        is_set = isinstance(right, dict) and "set" in right
        elements = right["set"] if is_set else [right]
        values: Sequence[Value] = [value for element in elements for value in self.read_element(element)]
        if self.joins:
            values = self.tidy(values)
        if negated and is_set:
            return self.none_of(values)
        if negated and len(values) > 1:
            raise Unknown
        return [Match(self.kind, value, negated) for value in values]

    def none_of(self, values: Sequence[Value]) -> list[Match]:
        """Return the matches for a negated set.

        Raises:
            Unknown: the model cannot express it.
        """
        if len(values) > 1:
            raise Unknown
        return [Match(self.kind, value, negated=True) for value in values]

    def read_element(self, element: Any) -> Iterator[Value]:
        """Yield the values of one element of a set, or of a single value.

        Raises:
            Unknown: the model cannot express it, such as @NAME, a named set.
        """
        del element
        raise Unknown

    def read_guard(self, condition: Json) -> list[Match]:
        """Return the matches that a guard's return condition stands for; empty if the condition is of another kind."""
        del condition
        return []


class TargetType:
    """How one kind of target is written and read, and its effect.

    Attributes:
        kind: the kind.
        name: the name after `-j`; "" for `JUMP`, where the chain's name stands.
        effect: what it does to a packet's traversal of the rules.
        modules: `(name, kernel module)` if the module is not `xt_NAME`; "" if it needs none, `{ip}` stands for ip or ip6.
        nft_modules: `(nft keyword, kernel module)` for keywords that need a module.
        nft_drops: why nft needs a second rule that drops what passes this one; "" if it does not.
    """

    kind: TargetKind
    name = ""
    effect: Literal["jumps", "returns", "continues", "ends", "diverts"] = "ends"
    modules: Pairs = ()
    nft_modules: Pairs = ()
    nft_drops = ""

    def text(self, target: Target) -> str:
        """Return what follows `-j`, as iptables-save prints it."""
        del target
        return self.name

    def parse(self, name: str, words: list[str]) -> Target | None:
        """Parse a target's name and the arguments after it; return None if the model cannot express it."""
        del name
        return None if words else Target(self.kind)

    def nft_text(self, target: Target, table: Table) -> str:
        """Return the target as an nft statement.

        Raises:
            Unsupported: nft cannot express it.
        """
        raise Unsupported(f"nft cannot express {target.kind} in table {table}")

    def read(self, statements: list[Json], table: Table) -> Target | None:
        """Parse statements as `nft -j` lists them; return None if they are not of this kind."""
        raise NotImplementedError


def parse_mark(text: str) -> int | None:
    """Parse a hexadecimal mark; return None if a mask excludes bits. Our marks always use all 32 bits."""
    digits = text.removesuffix(ALL_BITS)
    is_hexadecimal = digits.startswith("0x") and 0 < len(digits) - 2 <= len("ffffffff") and HEX.issuperset(digits[2:])
    return int(digits, 16) if is_hexadecimal else None


def read_number(element: Any) -> int:
    """Return a number of an nft listing.

    Raises:
        Unknown: `element` is not a number.
    """
    if not isinstance(element, int):
        raise Unknown
    return element
