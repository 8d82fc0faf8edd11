"""What `nft -j list table` prints of a table of ours, read back into the model.

A set is read as one rule for each of its values and a guard as the conditions that it stands for, so the rules of a plan can
be laid beside those in the kernel, one by one, and a rule that somebody changed by hand shows. A sum that was kept of what
was written would not tell. Counters and comments do not count.

All of the table is ours. What no transaction of ours writes (a set, another chain, another priority) is read as a chain or
rule that no plan has.
"""

from __future__ import annotations

import json
import re

from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.matches.kinds import Json, Unknown
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    OWN_CHAINS,
    OWNER_COMMENT,
    KernelRule,
    Match,
    MatchKind,
    OpaqueRule,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
)
from istio_init.rules.render.nft import hook

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = {table.value: table for table in Table}
GUARD = re.compile("[a-z]+_[A-Z_]+_if_[0-9]+")
KEYS = {key: known for known in MATCHES.values() for key in known.keys}
DROP = Target(TargetKind.DROP)


def parse_listing(text: str) -> Snapshot:
    """Read the listing of one family's table."""
    listing = _Listing()
    for item in json.loads(text)["nftables"]:
        ((kind, body),) = item.items()
        listing.add(kind, body)
    return listing.tables()


class _Listing:
    """Collects what was listed, and reads it when all is there."""

    def __init__(self) -> None:
        self._chains: dict[str, Json] = {}
        self._rules: dict[str, list[list[Json]]] = {}
        self._strangers: list[str] = []  # names for all that no plan has
        self._guards: set[str] = set()  # those that a rule leads to

    def add(self, kind: str, body: Json) -> None:
        if kind == "chain":
            self._chains[body["name"]] = body
        elif kind == "rule":
            self._rules.setdefault(body["chain"], []).append([one for one in body["expr"] if "counter" not in one])
        elif kind == "table" and "flags" in body:  # it may be switched off (`dormant`)
            self._strangers.append(f"table {body['flags']}")
        elif kind not in ("metainfo", "table"):
            self._strangers.append(f"{kind} {body.get('name', '')}")

    def tables(self) -> Snapshot:
        states: Snapshot = {}
        for name, body in self._chains.items():
            word, _, chain = name.partition("_")
            if word not in TABLES:
                self._strangers.append(name)
                continue
            table = TABLES[word]
            state = states.get(table, TableState({}))
            if chain in BUILTIN_CHAINS:
                rules = (*self._header(table, chain, body), *self._read(table, name, is_base=True))
                states[table] = state._replace(inserted=(*state.inserted, *((chain, rule) for rule in rules)))
            elif chain in OWN_CHAINS and "hook" not in body:
                states[table] = state._replace(chains={**state.chains, chain: tuple(self._read(table, name))})
            elif not GUARD.fullmatch(name):
                self._strangers.append(name)
        self._strangers += [name for name in self._chains if GUARD.fullmatch(name) and name not in self._guards]
        if self._strangers:
            state = states.get(Table.FILTER, TableState({}))
            states[Table.FILTER] = state._replace(chains=state.chains | dict.fromkeys(self._strangers, ()))
        return states

    def _header(self, table: Table, chain: str, body: Json) -> Iterator[KernelRule]:
        found = (body.get("type"), body.get("hook"), body.get("prio"))
        if found != hook(table, chain) or body.get("policy") != "accept" or "dev" in body:
            yield OpaqueRule(str(found))

    def _read(self, table: Table, name: str, *, is_base: bool = False) -> Iterator[KernelRule]:
        groups = iter([self._try(table, name, expressions) for expressions in self._rules.get(name, ())])
        for group in groups:
            # What some rules let pass is dropped by a rule of its own, which belongs to them.
            if _needs_drop(group) and next(groups, ()) != _dropped(group):
                yield OpaqueRule("tproxy without a drop")
            yield from map(_signed, group) if is_base else group

    def _try(self, table: Table, name: str, expressions: list[Json]) -> tuple[Rule, ...] | tuple[OpaqueRule]:
        try:
            return tuple(self._rule(table, name, expressions))
        except Unknown:
            return (OpaqueRule(json.dumps(expressions)),)

    def _rule(self, table: Table, name: str, expressions: list[Json]) -> Iterator[Rule]:
        """Read one rule of nf_tables: as many of the model as its set has values."""
        conditions = [expression["match"] for expression in expressions if "match" in expression]
        statements = expressions[len(conditions) :]
        if any("match" in statement for statement in statements):  # it would be done before the last condition is looked at
            raise Unknown
        matches = [alternatives for condition in conditions for alternatives in _matches(condition)]
        goal = _jump(statements)
        if goal.startswith(f"{name}_if_"):
            self._guards.add(goal)
            guarded, target = self._guard(table, goal)
            matches += [[match] for match in guarded]
        else:
            target = _target(table, statements)
        if sum(len(alternatives) > 1 for alternatives in matches) > 1:
            raise Unknown
        for index in range(max(map(len, matches), default=1)):
            picked = [alternatives[index % len(alternatives)] for alternatives in matches]
            yield Rule(tuple(dict.fromkeys(picked)), target)

    def _guard(self, table: Table, name: str) -> tuple[list[Match], Target]:
        """Read a guard: the conditions that it stands for, and the target of the rule that leads to it."""
        *returns, last = self._rules.get(name, [[]])
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


def _needs_drop(group: tuple[KernelRule, ...]) -> bool:
    return isinstance(group[0], Rule) and bool(TARGETS[group[0].target.kind].nft_drops)


def _dropped(group: tuple[KernelRule, ...]) -> tuple[KernelRule, ...]:
    return tuple(rule._replace(target=DROP) for rule in group if isinstance(rule, Rule))


def _signed(rule: KernelRule) -> KernelRule:
    """Sign a rule as a plan does in a chain that is not ours; a chain of nf_tables is, and needs no sign."""
    if isinstance(rule, OpaqueRule) or rule.target.kind is TargetKind.JUMP:
        return rule
    return rule._replace(matches=(*rule.matches, Match(MatchKind.COMMENT, OWNER_COMMENT)))


def _matches(condition: Json) -> Iterator[list[Match]]:
    """Read one condition: for each thing that it looks at, the matches of which one has to hold."""
    key = _key(condition["left"])
    if key not in KEYS:
        raise Unknown
    return KEYS[key].read(condition, key[0])


def _key(left: Any) -> tuple[str, str]:
    """Return what the left side of a condition is, in the form of `MatchType.keys`; two empty texts if it has none."""
    match left:
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return protocol, field
        case dict() if len(left) == 1:
            ((name, body),) = left.items()
            if isinstance(body, dict) and isinstance(body.get("key"), str):  # such as {"meta": {"key": "mark"}}
                return name, body["key"]
    return "", ""


def _guarded(condition: Json) -> list[Match]:
    """Read the condition on which a guard returns as the matches that it stands for."""
    for known in MATCHES.values():
        if matches := known.read_guard(condition):
            return matches
    raise Unknown


def _jump(statements: list[Json]) -> str:
    match statements:
        case [{"jump": {"target": str(goal)}}]:
            return goal
    return ""


def _target(table: Table, statements: list[Json]) -> Target:
    for known in TARGETS.values():
        if target := known.read(statements, table):
            return target
    raise Unknown
