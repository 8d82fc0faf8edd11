"""Connections and marks: matches on conntrack state and marks, and targets that set marks and zones."""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.matches.kinds import (
    ALL_BITS,
    Json,
    MatchType,
    Span,
    TargetType,
    Unknown,
    Value,
    parse_mark,
    read_number,
)
from istio_init.rules.model import Match, MatchKind, Table, Target, TargetKind
from istio_init.rules.values import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.packet import Packet

DIRECTIONS = ("ORIGINAL", "REPLY")
STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")  # in the order of iptables
CT_MODULES = (("ct", "nft_ct"),)
MARK: Json = {"meta": {"key": "mark"}}
CONNMARK: Json = {"ct": {"key": "mark"}}
MARK_TO_CONNECTION: Json = {"key": CONNMARK, "value": MARK}
MARK_TO_PACKET: Json = {"key": MARK, "value": CONNMARK}


class _State(MatchType):
    kind = MatchKind.CTSTATE
    scale = "state"
    option = "--ctstate"
    extension = "conntrack"
    nft = "ct state"
    nft_modules = CT_MODULES
    keys = (("ct", "state"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.ctstate in str(value).split(",")

    def spans(self, value: Value) -> tuple[Span, ...]:
        return tuple((state, state) for state in str(value).split(","))

    def is_guarded(self, match: Match) -> bool:
        if match.negated:
            raise Unsupported("nft cannot express a negated ctstate")
        return False

    def alternatives(self, condition: Json) -> list[Match]:
        right = condition["right"]
        names = [str(name).upper() for name in (right if isinstance(right, list) else [right])]
        if condition["op"] not in ("in", "==") or not set(names) <= set(STATES):
            raise Unknown
        return [Match(self.kind, ",".join(state for state in STATES if state in names))]


class _Direction(MatchType):
    kind = MatchKind.CTDIR
    option = "--ctdir"
    extension = "conntrack"
    nft = "ct direction"
    nft_modules = CT_MODULES
    keys = (("ct", "direction"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.ctdir == value

    def read_element(self, element: Any) -> Iterator[Value]:
        direction = str(element).upper()
        if direction not in DIRECTIONS:
            raise Unknown
        yield direction


class _Mark(MatchType):
    """A packet mark, compared in all 32 bits."""

    kind = MatchKind.MARK
    option = "--mark"
    extension = "mark"
    nft = "meta mark"
    keys = (("meta", "mark"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.mark == value

    def text(self, value: Value) -> str:
        return f"{value:#x}"

    def parse(self, text: str) -> Value | None:
        return parse_mark(text)

    def nft_value(self, value: Value) -> str:
        return f"{value:#x}"

    def read_element(self, element: Any) -> Iterator[Value]:
        yield read_number(element)


class _ConnMark(_Mark):
    kind = MatchKind.CONNMARK
    extension = "connmark"
    nft = "ct mark"
    nft_modules = CT_MODULES
    keys = (("ct", "mark"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.connmark == value


def set_mark(statement: Json) -> int | None:
    """Return the packet mark that a statement of `nft -j` sets; None if it is another statement."""
    match statement:
        case {"mangle": {"key": key, "value": int(mark)}} if key == MARK:
            return mark
    return None


class _SetMark(TargetType):
    kind = TargetKind.MARK
    name = "MARK"
    effect = "continues"

    def text(self, target: Target) -> str:
        return f"MARK --set-xmark {target.mark:#x}{ALL_BITS}"

    def parse(self, name: str, words: list[str]) -> Target | None:
        del name
        match words:
            case ["--set-xmark", text] if (mark := parse_mark(text)) is not None:
                return Target(self.kind, mark=mark)
        return None

    def nft_text(self, target: Target, table: Table) -> str:
        del table
        return f"meta mark set {target.mark:#x}"

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        if len(statements) == 1 and (mark := set_mark(statements[0])) is not None:
            return Target(self.kind, mark=mark)
        return None


class _CopyMark(TargetType):
    """Copies the whole mark between a packet and its connection."""

    name = "CONNMARK"
    effect = "continues"
    nft_modules = CT_MODULES
    verb: str
    nft: str
    changes: Json

    def text(self, target: Target) -> str:
        del target
        return f"CONNMARK {self.verb} --nfmask 0xffffffff --ctmask 0xffffffff"

    def parse(self, name: str, words: list[str]) -> Target | None:
        del name
        is_whole = words == [self.verb, "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"]
        return Target(self.kind) if is_whole else None

    def nft_text(self, target: Target, table: Table) -> str:
        del target, table
        return self.nft

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        return Target(self.kind) if statements == [{"mangle": self.changes}] else None


class _SaveMark(_CopyMark):
    kind = TargetKind.SAVE_MARK
    verb = "--save-mark"
    nft = "ct mark set meta mark"
    changes = MARK_TO_CONNECTION


class _RestoreMark(_CopyMark):
    kind = TargetKind.RESTORE_MARK
    verb = "--restore-mark"
    nft = "meta mark set ct mark"
    changes = MARK_TO_PACKET


class _Zone(TargetType):
    kind = TargetKind.ZONE
    name = "CT"
    effect = "continues"
    nft_modules = CT_MODULES

    def text(self, target: Target) -> str:
        return f"CT --zone {target.zone}"

    def parse(self, name: str, words: list[str]) -> Target | None:
        del name
        match words:
            case ["--zone", zone] if (found := number(zone)) is not None:
                return Target(self.kind, zone=found)
        return None

    def nft_text(self, target: Target, table: Table) -> str:
        del table
        return f"ct zone set {target.zone}"

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        match statements:
            case [{"mangle": {"key": {"ct": {"key": "zone"}}, "value": int(zone)}}]:
                return Target(self.kind, zone=zone)
        return None


MATCHES: tuple[MatchType, ...] = (_State(), _Direction(), _Mark(), _ConnMark())
TARGETS: tuple[TargetType, ...] = (_SetMark(), _SaveMark(), _RestoreMark(), _Zone())
