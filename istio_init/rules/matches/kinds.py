"""What is to be known of a kind of match or of target: the forms that the other modules of this package fill in.

Each pod start imports this package to write and read rules of iptables. So `re`, `ipaddress` and the like are imported by
the functions that need them.
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

OF_PROTOCOL = "PROTOCOL"  # the extension that is named like the protocol of the rule
PROTOCOLS = ("tcp", "udp")  # those with such an extension
ALL_BITS = "/0xffffffff"
HEX = frozenset("0123456789abcdef")


class Unknown(Exception):
    """The model cannot express a part of a listed rule."""


class MatchType:
    """What is known of one kind of match.

    Attributes:
        kind: which one.
        option: its option in iptables(8); an extension without one says all by its name.
        extension: the extension of iptables-extensions(8) that has the option, `OF_PROTOCOL` for that of the rule's
            protocol; empty where the option is iptables' own.
        attribute: the attribute of python-iptables' `Rule`, where the option is iptables' own.
        ipv6_mask: the attribute of its `entry.ipv6` that has to be set, too.
        modules: kernel modules of extensions by their names, where one is not called `xt_NAME`.
        nft: the expression of nft(8); `{family}` is ip or ip6, `{protocol}` that of the rule. A match without one is left
            out, or has a guard.
        nft_modules: kernel modules by the words of nft that need them.
        keys: what `nft -j` lists as the left side of a condition: a protocol and its field, or `meta` or `ct` and its key.
        joins: whether rules that differ in this match only can be one rule with a set. `tidy` is needed then.
        guard_condition: what the last rule of a guard asks for (see `istio_init.rules.render.nft`).
        guard_listed: how `nft -j` lists that.
    """

    kind: MatchKind
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
        """Return whether the condition holds for a packet, its negation aside."""
        raise NotImplementedError

    # iptables

    def text(self, value: Value) -> str:
        """Write a value as iptables-save prints it."""
        return str(value)

    def parse(self, text: str) -> Value | None:
        """Read a value as iptables-save prints it; None for one that the model cannot express."""
        return text

    def native_text(self, text: str) -> str:
        """Write what `attribute` has as iptables-save prints it."""
        return text

    # nft

    def nft_values(self, value: Value) -> tuple[Value, ...]:
        """Split a value into those of a set."""
        return (value,)

    def nft_value(self, value: Value) -> str:
        """Write one value.

        Raises:
            Unsupported: nft cannot express it.
        """
        return str(value).lower()

    def tidy(self, values: Iterable[Value]) -> tuple[Value, ...]:
        """Bring values of several rules into order, with the fewest items."""
        return tuple(values)

    def canonical(self, value: Value) -> Value:
        """Return a value as a listing is read."""
        return value

    def is_guarded(self, match: Match) -> bool:
        """Return whether it takes a guard to look for this.

        Raises:
            Unsupported: nft cannot express it.
        """
        del match
        return False

    def guard(self, values: Sequence[Value]) -> tuple[str, str]:
        """Return the condition on which a guard returns, and why it does."""
        raise NotImplementedError

    # The listing of nft -j

    def read(self, condition: Json, source: str) -> Iterator[list[Match]]:
        """Read a condition: for each thing that it looks at, the matches of which one has to hold.

        Args:
            condition: with `left`, `op` and `right`.
            source: the first part of the one of `keys` that it has.

        Raises:
            Unknown: the model cannot express it.
        """
        del source
        yield self.alternatives(condition)

    def alternatives(self, condition: Json) -> list[Match]:
        """Read the values of a condition, one match for each; of a set that must *not* have it, one for all."""
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
        """Read a set that must not have it."""
        if len(values) > 1:
            raise Unknown
        return [Match(self.kind, value, negated=True) for value in values]

    def read_element(self, element: Any) -> Iterator[Value]:
        """Read one element of a set, or the only one.

        Raises:
            Unknown: it is something else, such as @NAME, a set that is not ours.
        """
        del element
        raise Unknown

    def read_guard(self, condition: Json) -> list[Match]:
        """Read the condition on which a guard returns as what the guard stands for; nothing if it is another kind's."""
        del condition
        return []


class TargetType:
    """What is known of one kind of target.

    Attributes:
        kind: which one.
        name: what follows `-j`; `JUMP` has none of its own.
        effect: how a packet's way goes on.
        modules: kernel modules by the target's name, where it is not called `xt_NAME`: empty where there is none, `{ip}`
            stands for ip or ip6.
        nft_modules: kernel modules by the words of nft that need them.
        nft_drops: why nft needs a second rule, which drops what passes this one; empty if it does not.
    """

    kind: TargetKind
    name = ""
    effect: Literal["jumps", "returns", "goes on", "ends", "diverts"] = "ends"
    modules: Pairs = ()
    nft_modules: Pairs = ()
    nft_drops = ""

    def text(self, target: Target) -> str:
        """Write what follows `-j`, as iptables-save prints it."""
        del target
        return self.name

    def parse(self, name: str, words: list[str]) -> Target | None:
        """Read a name and the words after it; None for what the model cannot express."""
        del name
        return None if words else Target(self.kind)

    def nft_text(self, target: Target, table: Table) -> str:
        """Write a statement of nft.

        Raises:
            Unsupported: nft cannot express it.
        """
        raise Unsupported(f"nft cannot express {target.kind} in table {table}")

    def read(self, statements: list[Json], table: Table) -> Target | None:
        """Read the statements that `nft -j` lists; None if they are something else."""
        raise NotImplementedError


def parse_mark(text: str) -> int | None:
    """Read a mark that counts in all its bits, as ours do (without a mask it does); None for another one."""
    digits = text.removesuffix(ALL_BITS)
    is_hexadecimal = digits.startswith("0x") and 0 < len(digits) - 2 <= len("ffffffff") and HEX.issuperset(digits[2:])
    return int(digits, 16) if is_hexadecimal else None


def read_number(element: Any) -> int:
    """Read a number from a listing of nft.

    Raises:
        Unknown: it is something else.
    """
    if not isinstance(element, int):
        raise Unknown
    return element
