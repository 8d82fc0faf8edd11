"""A comment: a match that always holds, and identifies our rules in built-in chains."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.matches.kinds import MatchType, Value
from istio_init.rules.model import MatchKind

if TYPE_CHECKING:
    from istio_init.rules.packet import Packet


class _Comment(MatchType):
    """Omitted in nft, where the whole table is ours."""

    kind = MatchKind.COMMENT
    option = "--comment"
    extension = "comment"

    def holds(self, packet: Packet, value: Value) -> bool:
        del packet, value
        return True


MATCHES: tuple[MatchType, ...] = (_Comment(),)
