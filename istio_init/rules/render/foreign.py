"""Reads third-party rules in iptables(8) syntax, as far as they can be understood. Pure.

`istio_init.rules.render.iptables.parse_rule` reads a rule whole or not at all; here the conditions that are understood are
told from the fact that there are others.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.matches import MATCHES
from istio_init.rules.model import Match, MatchKind
from istio_init.rules.render.iptables import EXTENSIONS, PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.matches.kinds import MatchType

# An older name of an extension (iptables-extensions(8)).
OLD_STATE, STATE = "-m state --state ", "-m conntrack --ctstate "


class ForeignRule(NamedTuple):
    """What is understood of a third-party rule.

    Attributes:
        matches: the conditions that are understood.
        is_whole: whether there are no others.
        target: the target or chain; "" for none.
        options: the words after it.
        is_goto: whether the rule goes to a chain from which packets do not come back (`-g`).
    """

    matches: tuple[Match, ...]
    is_whole: bool
    target: str = ""
    options: tuple[str, ...] = ()
    is_goto: bool = False


def read_foreign(text: str) -> ForeignRule:
    """Read a rule as iptables-save prints it, without `-A CHAIN`; what is in brackets is not understood."""
    words = iter(_without_quotes(text).replace(OLD_STATE, STATE).split())
    matches: list[Match] = []
    is_whole = True
    options: dict[str, MatchType] = {}
    negated = False
    for word in words:
        if word in ("-j", "-g"):
            return ForeignRule(tuple(matches), is_whole, next(words, ""), tuple(words), word == "-g")
        if word == "!":
            negated = True
        elif word == "-m":
            extension = next(words, "")
            options = EXTENSIONS.get(extension, {})
            is_whole = is_whole and bool(options)
        elif known := options.get(word) or PLAIN.get(word):
            found = tuple(_read(known, next(words, ""), negated))
            matches += found
            is_whole = is_whole and (bool(found) or known.kind is MatchKind.COMMENT)
            negated = False
        elif word.startswith(("-", "[")):
            is_whole = negated = False
    return ForeignRule(tuple(matches), is_whole)


def _read(known: MatchType, text: str, negated: bool) -> Iterator[Match]:  # noqa: FBT001 - a value, not a switch
    if not known.scale:
        return
    try:
        value = known.parse(text)
        if value is not None and MATCHES[known.kind].spans(value):
            yield Match(known.kind, value, negated)
    except ValueError:  # a name where a number usually is, or a mask that is not a prefix
        return


def _without_quotes(text: str) -> str:
    """Replace each quoted string (a comment, a log prefix), which may contain anything, by one word."""
    if '"' not in text:
        return text
    return "_".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
