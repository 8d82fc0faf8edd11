"""Parses the output of `nft -j list table` for our table.

A set is read as one rule per value, and a guard as the matches that it stands for, so that the kernel's rules can be
compared with a plan's one by one, and drift (a rule changed by hand) is detected. A stored checksum of what was written
would not detect it. Counters are ignored. Comments are kept as the rules' reasons, so that a rollback restores them.

The whole table is ours. Anything in it that this program never writes (a set, another chain, another priority) is read as a
chain or rule that no plan has, so that it counts as drift.
"""

from __future__ import annotations

import json
import re

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING, Any, NamedTuple
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.matches.kinds import Json, Unknown
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    CHAINS_OF,
    FIRST,
    NO_REASON,
    OURS,
    KernelRule,
    Match,
    OpaqueRule,
    Reason,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
)
from istio_init.rules.render.nft import declaration, hook

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = {table.value: table for table in Table}
MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
GUARD = re.compile("[a-z]+_[A-Z_]+_if_[0-9]+")
KEYS = {key: known for known in MATCHES.values() for key in known.keys}
DROP = Target(TargetKind.DROP)


class Listing(NamedTuple):
    """What one family's table holds.

    Attributes:
        tables: the same as iptables would hold it.
        chains: all chains by name, each with the declaration of a base chain as a plan has it, or an empty text; none if
            the table holds anything besides chains and rules.
    """

    tables: Snapshot
    chains: dict[str, str]


def parse_listing(text: str) -> Listing:
    """Parse the listing of one family's table.

    Raises:
        Unsupported: it is none.
    """
    listing = _Listing()
    try:
        for item in json.loads(text)["nftables"]:
            ((kind, body),) = item.items()
            listing.add(kind, body)
        return listing.read()
    except MALFORMED as error:
        raise Unsupported(f"nft printed a listing that cannot be read ({error!r}); is it nftables' own?") from error


class _Listed(NamedTuple):
    """One rule of the listing, without its counter."""

    expressions: list[Json]
    comment: str


class _Listing:
    """Collects the listed objects, and reads them once all are known."""

    def __init__(self) -> None:
        self._chains: dict[str, Json] = {}
        self._rules: dict[str, list[_Listed]] = {}
        self._unexpected: list[str] = []  # names of objects that no plan has
        self._guards: set[str] = set()  # guards that a rule jumps to

    def add(self, kind: str, body: Json) -> None:
        if kind == "chain":
            self._chains[body["name"]] = body
        elif kind == "rule":
            expressions = [one for one in body["expr"] if "counter" not in one]
            self._rules.setdefault(body["chain"], []).append(_Listed(expressions, str(body.get("comment", ""))))
        elif kind == "table" and "flags" in body:  # it may be disabled (`dormant`)
            self._unexpected.append(f"table {body['flags']}")
        elif kind not in ("metainfo", "table"):
            self._unexpected.append(f"{kind} {body.get('name', '')}")

    def read(self) -> Listing:
        chains = {} if self._unexpected else {name: _declaration(name, body) for name, body in self._chains.items()}
        return Listing(self._tables(), chains)

    def _tables(self) -> Snapshot:
        states: Snapshot = {}
        for name, body in self._chains.items():
            prefix, _, chain = name.partition("_")
            if prefix not in TABLES:
                self._unexpected.append(name)
                continue
            table = TABLES[prefix]
            state = states.get(table, TableState({}))
            if chain in BUILTIN_CHAINS:
                rules = self._base(table, chain, body)
                states[table] = state._replace(inserted=(*state.inserted, *((chain, rule) for rule in rules)))
            elif chain in CHAINS_OF[table] and "hook" not in body:
                states[table] = state._replace(chains={**state.chains, chain: tuple(self._read(table, name))})
            elif not GUARD.fullmatch(name):
                self._unexpected.append(name)
        self._unexpected += [name for name in self._chains if GUARD.fullmatch(name) and name not in self._guards]
        if self._unexpected:
            state = states.get(Table.FILTER, TableState({}))
            states[Table.FILTER] = state._replace(chains=state.chains | dict.fromkeys(self._unexpected, ()))
        return states

    def _base(self, table: Table, chain: str, body: Json) -> Iterator[KernelRule]:
        """Read a base chain; its rules get the comments that a plan's rules have in built-in chains."""
        if not _declaration(body["name"], body):
            yield OpaqueRule(str(_hook(body)))
        is_first = _hook(body) == hook(table, chain, is_first=True)
        for rule in self._read(table, body["name"]):
            yield _signed(rule, is_first=is_first)

    def _read(self, table: Table, name: str) -> Iterator[KernelRule]:
        listed = self._rules.get(name, ())
        groups = zip(listed, [self._try(table, name, one.expressions) for one in listed], strict=True)
        for one, group in groups:
            # A target with `nft_drops` is followed by a rule that drops, which is part of it.
            if _needs_drop(group) and next(groups, (one, ()))[1] != _dropped(group):
                yield OpaqueRule("tproxy without a drop")
            for rule in group:
                yield rule._replace(reason=_reason(one.comment)) if isinstance(rule, Rule) else rule

    def _try(self, table: Table, name: str, expressions: list[Json]) -> tuple[Rule, ...] | tuple[OpaqueRule]:
        try:
            return tuple(self._rule(table, name, expressions))
        except Unknown:
            return (OpaqueRule(json.dumps(expressions)),)

    def _rule(self, table: Table, name: str, expressions: list[Json]) -> Iterator[Rule]:
        """Yield the rules that one nft rule stands for, one per value of its set.

        Raises:
            Unknown: the model cannot express it.
        """
        conditions = [expression["match"] for expression in expressions if "match" in expression]
        statements = expressions[len(conditions) :]
        if any("match" in statement for statement in statements):  # a statement would run before the last condition
            raise Unknown
        matches = [alternatives for condition in conditions for alternatives in _matches(condition)]
        destination = _jump(statements)
        if destination.startswith(f"{name}_if_"):
            self._guards.add(destination)
            guarded, target = self._guard(table, destination)
            matches += [[match] for match in guarded]
        else:
            target = _target(table, statements)
        if not all(matches) or sum(len(alternatives) > 1 for alternatives in matches) > 1:
            raise Unknown
        for index in range(max(map(len, matches), default=1)):
            picked = [alternatives[index % len(alternatives)] for alternatives in matches]
            yield Rule(tuple(dict.fromkeys(picked)), target)

    def _guard(self, table: Table, name: str) -> tuple[list[Match], Target]:
        """Return the matches that a guard stands for, and its target.

        Raises:
            Unknown: the model cannot express it.
        """
        *returns, last = [one.expressions for one in self._rules.get(name, [])] or [[]]
        guarded: list[Match] = []
        for expressions in returns:
            match expressions:
                case [{"match": condition}, {"return": None}]:
                    guarded += _guarded(condition)
                case _:
                    raise Unknown
        for kind in dict.fromkeys(match.kind for match in guarded):
            listed = MATCHES[kind].guard_listed
            if listed is not None:
                if last[:1] != [{"match": listed}]:
                    raise Unknown
                last = last[1:]
        # See `istio_init.rules.render.nft`: in a guard, RETURN is written as accept.
        return guarded, Target(TargetKind.RETURN) if last == [{"accept": None}] else _target(table, last)


def _declaration(name: str, body: Json) -> str:
    """Return the declaration of a base chain that has a type, hook and priority as a plan has them, or an empty text."""
    prefix, _, chain = name.partition("_")
    if prefix not in TABLES or chain not in BUILTIN_CHAINS or body.get("policy") != "accept" or "dev" in body:
        return ""
    known = (hook(TABLES[prefix], chain, is_first=is_first) for is_first in (False, True))
    return next((declaration(one) for one in known if one == _hook(body)), "")


def _hook(body: Json) -> tuple[Any, Any, Any]:
    return body.get("type"), body.get("hook"), body.get("prio")


def _needs_drop(group: tuple[KernelRule, ...]) -> bool:
    return isinstance(group[0], Rule) and bool(TARGETS[group[0].target.kind].nft_drops)


def _dropped(group: tuple[KernelRule, ...]) -> tuple[KernelRule, ...]:
    return tuple(rule._replace(target=DROP) for rule in group if isinstance(rule, Rule))


def _signed(rule: KernelRule, *, is_first: bool) -> KernelRule:
    """Add the comment that a plan's rules have in built-in chains, and that is omitted in our nft table."""
    if isinstance(rule, OpaqueRule) or (rule.target.kind is TargetKind.JUMP and not is_first):
        return rule
    return rule._replace(matches=(*rule.matches, FIRST if is_first else OURS))


def _reason(comment: str) -> Reason:
    return Reason(template="{value}", value=comment) if comment else NO_REASON


def _matches(condition: Json) -> Iterator[list[Match]]:
    """Read one condition; see `MatchType.read`."""
    key = _key(condition["left"])
    if key not in KEYS:
        raise Unknown
    return KEYS[key].read(condition, key[0])


def _key(left: Any) -> tuple[str, str]:
    """Return the left side of a condition in the form of `MatchType.keys`; ("", "") if it has no such form."""
    match left:
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return protocol, field
        case dict() if len(left) == 1:
            ((name, body),) = left.items()
            if isinstance(body, dict) and isinstance(body.get("key"), str):  # such as {"meta": {"key": "mark"}}
                return name, body["key"]
    return "", ""


def _guarded(condition: Json) -> list[Match]:
    """Return the matches that a guard's return condition stands for.

    Raises:
        Unknown: the model cannot express it.
    """
    for known in MATCHES.values():
        if matches := known.read_guard(condition):
            return matches
    raise Unknown


def _jump(statements: list[Json]) -> str:
    match statements:
        case [{"jump": {"target": str(chain)}}]:
            return chain
    return ""


def _target(table: Table, statements: list[Json]) -> Target:
    for known in TARGETS.values():
        if target := known.read(statements, table):
            return target
    raise Unknown
