"""Matches on the user and group that send a packet, and on the local socket of its connection.

nft cannot express some of them in one rule:

- `-m owner` with `!` holds for a packet without a sending process, such as one from a file system in the kernel. `meta skuid
  !=` does not hold, nor does any other condition on the owner.
- `-m socket` holds for a connection in TIME_WAIT. `socket wildcard` does not; only `socket transparent` finds such sockets.
"""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.matches.kinds import Json, MatchType, Span, Value, read_number
from istio_init.rules.model import Match, MatchKind
from istio_init.rules.values import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from istio_init.rules.packet import Packet

FOUND: Json = {"op": "==", "left": {"socket": {"key": "transparent"}}, "right": {"set": [0, 1]}}
LISTENS: Json = {"op": "==", "left": {"socket": {"key": "wildcard"}}, "right": 1}


class _Owner(MatchType):
    extension = "owner"
    joins = True

    def parse(self, text: str) -> Value | None:
        return number(text)

    def spans(self, value: Value) -> tuple[Span, ...]:
        return ((value, value),)

    def tidy(self, values: Iterable[Value]) -> tuple[Value, ...]:
        return tuple(sorted(set(values), key=int))

    def is_guarded(self, match: Match) -> bool:
        return match.negated

    def guard(self, values: Sequence[Value]) -> tuple[str, str]:
        ids = ", ".join(str(value) for value in sorted(values, key=int))
        return f"{self.nft} {ids if len(values) == 1 else f'{{ {ids} }}'}", "sent by one of these owners"

    def read_element(self, element: Any) -> Iterator[Value]:
        yield read_number(element)

    def read_guard(self, condition: Json) -> list[Match]:
        match condition:
            case {"op": "==", "left": {"meta": {"key": key}}} if self.keys == (("meta", key),):
                return [match._replace(negated=True) for match in self.alternatives(condition)]
        return []


class _UidOwner(_Owner):
    kind = MatchKind.UID_OWNER
    scale = "user"
    option = "--uid-owner"
    nft = "meta skuid"
    keys = (("meta", "skuid"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.outbound and packet.uid == value


class _GidOwner(_Owner):
    kind = MatchKind.GID_OWNER
    scale = "group"
    option = "--gid-owner"
    nft = "meta skgid"
    keys = (("meta", "skgid"),)

    def holds(self, packet: Packet, value: Value) -> bool:
        return packet.outbound and packet.gid == value


class _Socket(MatchType):
    kind = MatchKind.SOCKET
    extension = "socket"
    nft_modules = (("socket", "nft_socket"),)
    guard_condition = "socket transparent { 0, 1 }"  # holds for each socket that the kernel finds
    guard_listed = FOUND

    def holds(self, packet: Packet, value: Value) -> bool:
        del value
        return packet.has_socket

    def is_guarded(self, match: Match) -> bool:
        if match.negated:
            raise Unsupported("nft cannot express a negated socket")
        return True

    def guard(self, values: Sequence[Value]) -> tuple[str, str]:
        del values
        return "socket wildcard 1", "a listening socket is not the connection's own"

    def read_guard(self, condition: Json) -> list[Match]:
        return [Match(self.kind)] if condition == LISTENS else []


MATCHES: tuple[MatchType, ...] = (_UidOwner(), _GidOwner(), _Socket())
