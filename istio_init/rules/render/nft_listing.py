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
from typing import TYPE_CHECKING, Any

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
from istio_init.rules.render.nft import ADDRESS_WORDS, INTERFACES, MARKS, OWNERS, REJECTIONS, hook
from istio_init.rules.render.nft_sets import ADDRESSES, JOINED, PORTS, range_cidrs, tidy

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]

TABLES = {table.value: table for table in Table}
GUARD = re.compile("[a-z]+_[A-Z_]+_if_[0-9]+")
ADDRESS = re.compile("[0-9a-f.:]+")
NUMBERS = (*OWNERS, *MARKS)
WORDS = (*INTERFACES, MatchKind.PROTOCOL)
STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")  # in the order of iptables
FIELDS = {word: kind for kind, word in ADDRESS_WORDS.items()}
PORT_FIELDS = {"sport": MatchKind.SOURCE_PORT, "dport": MatchKind.DESTINATION_PORT}
META = {
    "iifname": MatchKind.IN_INTERFACE,
    "oifname": MatchKind.OUT_INTERFACE,
    "l4proto": MatchKind.PROTOCOL,
    "skuid": MatchKind.UID_OWNER,
    "skgid": MatchKind.GID_OWNER,
    "mark": MatchKind.MARK,
}
ANSWERS = {words: name for name, words in REJECTIONS.items()}
SOCKET_OF_ANY_ADDRESS: Json = {"op": "==", "left": {"socket": {"key": "wildcard"}}, "right": 1}
SOCKET: Json = {"op": "==", "left": {"socket": {"key": "transparent"}}, "right": {"set": [0, 1]}}
VERDICTS = {kind.lower(): Target(kind) for kind in (TargetKind.RETURN, TargetKind.ACCEPT, TargetKind.DROP)}


class _Unknown(Exception):
    """The model has no words for a part of a rule."""


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
            # What no proxy listens for is dropped by a rule of its own, which belongs to this one.
            if _is_tproxy(group) and next(groups, ()) != _dropped(group):
                yield OpaqueRule("tproxy without a drop")
            yield from map(_signed, group) if is_base else group

    def _try(self, table: Table, name: str, expressions: list[Json]) -> tuple[Rule, ...] | tuple[OpaqueRule]:
        try:
            return tuple(self._rule(table, name, expressions))
        except _Unknown:
            return (OpaqueRule(json.dumps(expressions)),)

    def _rule(self, table: Table, name: str, expressions: list[Json]) -> Iterator[Rule]:
        """Read one rule of nf_tables: as many of the model as its set has values."""
        conditions = [expression["match"] for expression in expressions if "match" in expression]
        statements = expressions[len(conditions) :]
        if any("match" in statement for statement in statements):  # it would be done before the last condition is looked at
            raise _Unknown
        matches = [alternatives for condition in conditions for alternatives in _matches(condition)]
        goal = _jump(statements)
        if goal.startswith(f"{name}_if_"):
            self._guards.add(goal)
            guarded, target = self._guard(table, goal)
            matches += [[match] for match in guarded]
        else:
            target = _target(table, statements)
        if sum(len(alternatives) > 1 for alternatives in matches) > 1:
            raise _Unknown
        for index in range(max(map(len, matches), default=1)):
            picked = [alternatives[index % len(alternatives)] for alternatives in matches]
            yield Rule(tuple(dict.fromkeys(picked)), target)

    def _guard(self, table: Table, name: str) -> tuple[list[Match], Target]:
        """Read a guard: the conditions that it stands for, and the target of the rule that leads to it."""
        *returns, last = self._rules.get(name, [[]])
        guarded: list[Match] = []
        for expressions in returns:
            match expressions:
                case [{"match": condition}, {"return": None}] if condition == SOCKET_OF_ANY_ADDRESS:
                    guarded.append(Match(MatchKind.SOCKET))
                case [{"match": {"op": "==", "left": {"meta": {"key": "skuid" | "skgid"}}} as condition}, {"return": None}]:
                    ((*owners,),) = _matches(condition)
                    guarded += [owner._replace(negated=True) for owner in owners]
                case _:
                    raise _Unknown
        if Match(MatchKind.SOCKET) in guarded:
            if last[:1] != [{"match": SOCKET}]:
                raise _Unknown
            last = last[1:]
        # See `istio_init.rules.render.nft`: in a guard, RETURN is written as accept.
        return guarded, Target(TargetKind.RETURN) if last == [{"accept": None}] else _target(table, last)


def _is_tproxy(group: tuple[KernelRule, ...]) -> bool:
    return isinstance(group[0], Rule) and group[0].target.kind is TargetKind.TPROXY


def _dropped(group: tuple[KernelRule, ...]) -> tuple[KernelRule, ...]:
    return tuple(rule._replace(target=VERDICTS["drop"]) for rule in group if isinstance(rule, Rule))


def _signed(rule: KernelRule) -> KernelRule:
    """Sign a rule as a plan does in a chain that is not ours; a chain of nf_tables is, and needs no sign."""
    if isinstance(rule, OpaqueRule) or rule.target.kind is TargetKind.JUMP:
        return rule
    return rule._replace(matches=(*rule.matches, Match(MatchKind.COMMENT, OWNER_COMMENT)))


def _matches(condition: Json) -> Iterator[list[Match]]:
    """Read one condition: for each thing that it looks at, the matches of which one has to hold."""
    match condition:
        case {"left": {"payload": {"protocol": "ip" | "ip6", "field": str(field)}}} if field in FIELDS:
            yield _alternatives(FIELDS[field], condition)
        case {"left": {"payload": {"protocol": "tcp" | "udp" as protocol, "field": str(field)}}} if field in PORT_FIELDS:
            yield [Match(MatchKind.PROTOCOL, protocol)]
            yield _alternatives(PORT_FIELDS[field], condition)
        case {"left": {"meta": {"key": str(key)}}} if key in META:
            yield _alternatives(META[key], condition)
        case {"left": {"ct": {"key": "mark"}}}:
            yield _alternatives(MatchKind.CONNMARK, condition)
        case {"op": "in" | "==", "left": {"ct": {"key": "state"}}, "right": right}:
            names = [str(name).upper() for name in (right if isinstance(right, list) else [right])]
            if not set(names) <= set(STATES):
                raise _Unknown
            yield [Match(MatchKind.CTSTATE, ",".join(state for state in STATES if state in names))]
        case _:
            raise _Unknown


def _alternatives(kind: MatchKind, condition: Json) -> list[Match]:
    """Read the values of one condition, one match for each; of a set that must *not* have it, one for all."""
    right, negated = condition["right"], condition["op"] == "!="
    if condition["op"] not in ("==", "!="):
        raise _Unknown
    is_set = isinstance(right, dict) and "set" in right
    values = [value for element in (right["set"] if is_set else [right]) for value in _values(kind, element)]
    if kind in JOINED:
        values = list(tidy(kind, values))
    if is_set and negated and kind is MatchKind.DESTINATION_PORT:
        return [Match(MatchKind.DESTINATION_PORTS, ",".join(map(str, values)), negated)]
    if negated and len(values) > 1:
        raise _Unknown
    return [Match(kind, value, negated) for value in values]


def _values(kind: MatchKind, element: Any) -> Iterator[int | str]:
    match element:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            yield f"{address}/{length}"
        case {"range": [str(first), str(last)]}:
            yield from range_cidrs(first, last)
        case {"range": [int(first), int(last)]} if kind in PORTS:
            yield f"{first}:{last}"
        case str() if kind in INTERFACES and element.endswith("*"):
            yield f"{element[:-1]}+"
        case int() if kind in PORTS:
            yield str(element)
        case int() if kind in NUMBERS:
            yield element
        case str() if kind in WORDS or (kind in ADDRESSES and ADDRESS.fullmatch(element)):
            yield element
        case _:  # such as @NAME, a set that is not ours
            raise _Unknown


def _jump(statements: list[Json]) -> str:
    match statements:
        case [{"jump": {"target": str(goal)}}]:
            return goal
    return ""


def _target(table: Table, statements: list[Json]) -> Target:
    match statements:
        case [{"return": None} | {"accept": None} | {"drop": None} as verdict]:
            return VERDICTS[next(iter(verdict))]
        case [{"jump": {"target": str(goal)}}] if goal.startswith(f"{table}_"):
            return Target(TargetKind.JUMP, chain=goal.removeprefix(f"{table}_"))
        case [{"redirect": {"port": int(port)} as options}] if len(options) == 1:
            return Target(TargetKind.REDIRECT, port=port)
        case [{"tproxy": {"port": int(port)} as options}, {"mangle": change}, {"accept": None}] if len(options) == 1:
            changed = _changed(change)
            if changed.kind is TargetKind.MARK:
                return Target(TargetKind.TPROXY, port=port, mark=changed.mark)
        case [{"mangle": change}]:
            return _changed(change)
        case [{"reject": {"type": str(kind), "expr": str(message)}}] if (kind, message) in ANSWERS:
            return Target(TargetKind.REJECT, reject_with=ANSWERS[kind, message])
    raise _Unknown


def _changed(change: Json) -> Target:
    """Read what is written to a packet or its connection."""
    match change:
        case {"key": {"meta": {"key": "mark"}}, "value": int(mark)}:
            return Target(TargetKind.MARK, mark=mark)
        case {"key": {"ct": {"key": "mark"}}, "value": {"meta": {"key": "mark"}}}:
            return Target(TargetKind.SAVE_MARK)
        case {"key": {"meta": {"key": "mark"}}, "value": {"ct": {"key": "mark"}}}:
            return Target(TargetKind.RESTORE_MARK)
        case {"key": {"ct": {"key": "zone"}}, "value": int(zone)}:
            return Target(TargetKind.ZONE, zone=zone)
    raise _Unknown
