"""Rules in the language of iptables(8), both ways: restore scripts, single commands, and back from iptables-save.

A rule is written as iptables-save (1.8) prints it, so what is in a kernel and what was planned can be laid side by side.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from istio_init.rules.changes import TableChange, compare, desired
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    OWN_CHAINS,
    OWNER_COMMENT,
    Ending,
    Family,
    KernelRule,
    Match,
    MatchKind,
    OpaqueRule,
    Plan,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
    Variant,
)


class Words(NamedTuple):
    """How a match is written: the extension that it needs (`OF_PROTOCOL`: that of the rule's protocol), and its option."""

    extension: str
    option: str


OF_PROTOCOL = "PROTOCOL"


MATCH_WORDS = {
    MatchKind.SOURCE: Words("", "-s"),
    MatchKind.DESTINATION: Words("", "-d"),
    MatchKind.IN_INTERFACE: Words("", "-i"),
    MatchKind.OUT_INTERFACE: Words("", "-o"),
    MatchKind.PROTOCOL: Words("", "-p"),
    MatchKind.SOURCE_PORT: Words(OF_PROTOCOL, "--sport"),
    MatchKind.DESTINATION_PORT: Words(OF_PROTOCOL, "--dport"),
    MatchKind.DESTINATION_PORTS: Words("multiport", "--dports"),
    MatchKind.UID_OWNER: Words("owner", "--uid-owner"),
    MatchKind.GID_OWNER: Words("owner", "--gid-owner"),
    MatchKind.SOCKET: Words("socket", ""),
    MatchKind.CTSTATE: Words("conntrack", "--ctstate"),
    MatchKind.MARK: Words("mark", "--mark"),
    MatchKind.CONNMARK: Words("connmark", "--mark"),
    MatchKind.COMMENT: Words("comment", "--comment"),
}
# Targets of iptables-extensions(8) that no rule of the same chain comes after.
ENDING_TARGETS = frozenset(
    {"ACCEPT", "DROP", "RETURN", "REJECT", "REDIRECT", "DNAT", "NETMAP", "TPROXY", "QUEUE", "NFQUEUE"},
)
# What is said to this host alone is not captured by most plans, and others (Docker's DNS) have good reasons for such rules.
LOOPBACK = re.compile(r"(?<!!) (?:-d (?:127\.|::1[/ ])|-[io] lo )")
PROTOCOLS = ("tcp", "udp")
KINDS = {
    (extension, words.option): kind
    for kind, words in MATCH_WORDS.items()
    for extension in (PROTOCOLS if words.extension == OF_PROTOCOL else (words.extension,))
}
OUR_COMMENT = f"-m comment --comment {OWNER_COMMENT} "
# iptables' programs take 255 words a rule (MAX_ARGC of xshared.h), `-A CHAIN` included. Owners, of which a rule can have
# many, are written in three words instead of five where there would be more.
MOST_WORDS = 240
OWNER = re.compile(r"-m owner( !)? --([ug]id)-owner (\d+)")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')  # a comment or a log prefix, which may say anything
WHOLE_MARK = re.compile(r"0x[0-9a-f]{1,8}(/0xffffffff)?")
TABLES = {table.value: table for table in Table}
EXTENSIONS = frozenset(extension for extension, _ in KINDS if extension)
NUMBERS = (MatchKind.UID_OWNER, MatchKind.GID_OWNER)
CIDRS = (MatchKind.SOURCE, MatchKind.DESTINATION)
MARKS = (MatchKind.MARK, MatchKind.CONNMARK)

CONNMARK_WORDS = {TargetKind.SAVE_MARK: "--save-mark", TargetKind.RESTORE_MARK: "--restore-mark"}

# What iptables-save adds to TPROXY although nobody asked for it: "the address of the incoming interface".
DEFAULT_ADDRESSES = (("--on-ip", "0.0.0.0"), ("--on-ip", "::"))  # noqa: S104 - no address to listen on


def render_restore(plan: Plan, family: Family) -> str:
    """Write what `iptables-restore --noflush` (ip6tables-restore for IPv6) loads into a namespace without our rules.

    The policy route of TPROXY is not iptables' business and stands there as comments.
    """
    route = [f"# also needed: {command}\n" for command in route_commands(plan, family)]
    return "".join(route) + render_changes(compare(desired(plan, family), {}))


def render_commands(plan: Plan, family: Family, variant: Variant = Variant.PLAIN) -> str:
    """Write commands that a person can paste into a root shell of a namespace without our rules."""
    lines = list(route_commands(plan, family))
    for change in compare(desired(plan, family), {}):
        command = f"{command_name(family, variant)} -w -t {change.table}"
        lines.extend(f"{command} -N {name}" for name in change.chains)
        lines.extend(f"{command} {words}" for words in _appended_rules(change))
    return "".join(f"{line}\n" for line in lines)


def render_changes(changes: Iterable[TableChange]) -> str:
    """Write the restore script that makes `changes`, each table in a transaction of its own (`--noflush` is assumed)."""
    return "".join(f"{line}\n" for change in changes for line in _change_lines(change))


def render_rule(rule: KernelRule) -> str:
    """Write one rule, without `-A CHAIN`."""
    if isinstance(rule, OpaqueRule):
        return rule.text
    protocol = protocol_of(rule)
    text = " ".join((*(render_match(match, protocol) for match in rule.matches), render_target(rule.target)))
    return OWNER.sub(r"-mowner\1 --\2-owner=\3", text) if text.count(" ") > MOST_WORDS else text


def render_match(match: Match, protocol: str) -> str:
    """Write one condition, the `-m` that it needs included.

    Args:
        match: the condition.
        protocol: that of the rule, whose extension knows ports.
    """
    extension, option = MATCH_WORDS[match.kind]
    value = f"{match.value:#x}" if match.kind in MARKS else match.value
    words = f"{option} {value}" if option else ""
    if match.negated:
        words = f"! {words}"
    extension = protocol if extension == OF_PROTOCOL else extension
    return f"-m {extension} {words}".rstrip() if extension else words


def protocol_of(rule: Rule) -> str:
    """Name the protocol that a rule asks for, or nothing."""
    return next((str(match.value) for match in rule.matches if match.kind is MatchKind.PROTOCOL), "")


def render_target(target: Target) -> str:  # noqa: PLR0911 - one for each kind of target
    """Write what a rule does, from `-j` on."""
    match target.kind:
        case TargetKind.JUMP:
            return f"-j {target.chain}"
        case TargetKind.REDIRECT:
            return f"-j REDIRECT --to-ports {target.port}"
        case TargetKind.TPROXY:
            return f"-j TPROXY --on-port {target.port} --tproxy-mark {_mark(target)}"
        case TargetKind.MARK:
            return f"-j MARK --set-xmark {_mark(target)}"
        case TargetKind.REJECT:
            return f"-j REJECT --reject-with {target.reject_with}"
        case TargetKind.SAVE_MARK | TargetKind.RESTORE_MARK:
            return f"-j CONNMARK {CONNMARK_WORDS[target.kind]} --nfmask 0xffffffff --ctmask 0xffffffff"
        case TargetKind.ZONE:
            return f"-j CT --zone {target.zone}"
        case _:
            return f"-j {target.kind}"


def command_name(family: Family, variant: Variant, verb: str = "") -> str:
    """Name a binary of iptables' family: `iptables`, `ip6tables-legacy`, `iptables-nft-restore`."""
    parts = ("iptables" if family is Family.IPV4 else "ip6tables", "" if variant is Variant.PLAIN else variant, verb)
    return "-".join(part for part in parts if part)


def parse_save(text: str) -> Snapshot:
    """Read what iptables-save printed of one family (without counters)."""
    tables: dict[Table, TableReader] = {}
    table = TableReader()
    for line in text.splitlines():
        if line.startswith("-A "):
            chain, _, rule = line.removeprefix("-A ").partition(" ")
            table.add_rule(chain, rule)
        elif line.startswith(":"):
            chain, policy, _ = line[1:].split(" ", 2)
            table.add_chain(chain, policy)
        elif line.startswith("*"):
            table = TableReader()
            if line[1:] in TABLES:  # the others (security) are no layout's business: read past them
                tables[TABLES[line[1:]]] = table
    return {name: table.state() for name, table in tables.items()}


def parse_rule(text: str) -> KernelRule:
    """Read one rule as iptables-save prints it, without `-A CHAIN`; what the model has no words for stays opaque."""
    if '"' in text:
        return OpaqueRule(text)
    matches: list[Match] = []
    negated = False
    extension = ""
    words = iter(text.split())
    for word in words:
        if word == "!":
            negated = True
        elif kind := KINDS.get((extension, word)) or KINDS.get(("", word)):
            value = _value(kind, next(words, ""))
            if value is None:
                break
            matches.append(Match(kind, value, negated))
            negated = False
        elif word == "-m" and (extension := next(words, "")) in EXTENSIONS:
            if extension == "socket":
                matches.append(Match(MatchKind.SOCKET, "", negated))
                negated = False
        elif word == "-j":
            target = _parse_target(next(words, ""), list(words))
            return OpaqueRule(text) if target is None else Rule(tuple(matches), target)
        else:
            break
    return OpaqueRule(text)


def _value(kind: MatchKind, text: str) -> int | str | None:
    """Read the value of a condition; None for one that the model has no words for."""
    if kind in NUMBERS:
        return int(text) if text.isdecimal() else None
    if kind in MARKS:
        return _mark_of(text) if WHOLE_MARK.fullmatch(text) else None
    if kind in CIDRS and "." in text and ":" in text:
        from ipaddress import ip_network

        return str(ip_network(text))  # as plans have it; iptables-save prints ::102:304 as ::1.2.3.4
    return text


class TableReader:
    """Collects chains and rules of one table, and keeps ours apart from foreign ones."""

    def __init__(self) -> None:
        """Begin with an empty table."""
        self._chains: dict[str, list[KernelRule]] = {}
        self._jumps: list[tuple[str, KernelRule]] = []
        self._inserted: list[tuple[str, KernelRule]] = []
        self._users: list[tuple[str, str]] = []
        self._foreign = False
        self._seen_foreign: set[str] = set()  # chains in which a foreign rule came by
        self._endings: list[Ending] = []

    def add_chain(self, name: str, policy: str) -> None:
        """Take note of a chain; the policy of a user-defined one is `-`."""
        if name in OWN_CHAINS:
            self._chains[name] = []
        elif policy != "ACCEPT":  # a changed policy, or a user-defined chain
            self._foreign = True

    def add_rule(self, chain: str, text: str, native: object = None) -> None:
        """Take note of a rule, as iptables-save prints it; `native` is kept where the model has no words for it."""
        if chain in OWN_CHAINS:
            self._chains[chain].append(_keep(parse_rule(text), native))
            return
        goal = _goal(text)
        if chain in BUILTIN_CHAINS and (goal in OWN_CHAINS or OUR_COMMENT in QUOTED.sub("", text)):
            place = self._jumps if chain in self._seen_foreign else self._inserted
            place.append((chain, _keep(parse_rule(text), native)))
            self._endings = [one._replace(is_ahead=one.is_ahead or one.chain == chain) for one in self._endings]
            return
        self._foreign = True
        self._seen_foreign.add(chain)
        if goal in OWN_CHAINS:
            self._users.append((goal, chain))
        if chain in BUILTIN_CHAINS and goal in ENDING_TARGETS and not LOOPBACK.search(f" {text} "):
            self._endings.append(Ending(chain, text, is_ahead=False))

    def state(self) -> TableState:
        """Give what was collected."""
        chains = {name: tuple(rules) for name, rules in self._chains.items()}
        return TableState(
            chains, tuple(self._jumps), self._foreign, tuple(self._users), tuple(self._inserted), tuple(self._endings)
        )


def _keep(rule: KernelRule, native: object) -> KernelRule:
    return rule._replace(native=native) if isinstance(rule, OpaqueRule) else rule


def _goal(text: str) -> str:
    """Name the chain or target that a rule leads to."""
    words = QUOTED.sub("", text).split()
    for index in range(len(words) - 2, -1, -1):
        if words[index] in ("-j", "-g"):
            return words[index + 1]
    return ""


def _parse_target(name: str, options: list[str]) -> Target | None:  # noqa: PLR0911 - one for each kind of target
    pairs = [pair for pair in itertools.zip_longest(options[::2], options[1::2]) if pair not in DEFAULT_ADDRESSES]
    match name, pairs:
        case "REDIRECT", [("--to-ports", str(port))] if port.isdecimal():
            return Target(TargetKind.REDIRECT, port=int(port))
        case "TPROXY", [("--on-port", str(port)), ("--tproxy-mark", str(mark))] if port.isdecimal() and _is_whole(mark):
            return Target(TargetKind.TPROXY, port=int(port), mark=_mark_of(mark))
        case "MARK", [("--set-xmark", str(mark))] if _is_whole(mark):
            return Target(TargetKind.MARK, mark=_mark_of(mark))
        case "REJECT", [("--reject-with", str(reject_with))]:
            return Target(TargetKind.REJECT, reject_with=reject_with)
        case "CONNMARK", [
            (("--save-mark" | "--restore-mark") as verb, "--nfmask"),
            ("0xffffffff", "--ctmask"),
            ("0xffffffff", None),
        ]:
            return Target(TargetKind.SAVE_MARK if verb == "--save-mark" else TargetKind.RESTORE_MARK)
        case "CT", [("--zone", str(zone))] if zone.isdecimal():
            return Target(TargetKind.ZONE, zone=int(zone))
        case (("RETURN" | "ACCEPT" | "DROP"), []):
            return Target(TargetKind(name))
        case _, [] if name in OWN_CHAINS:
            return Target(TargetKind.JUMP, chain=name)
    return None


def _is_whole(mark: str) -> bool:
    """Tell whether a mark is set in all its bits, as ours are; without a mask it is."""
    return WHOLE_MARK.fullmatch(mark) is not None


def _mark_of(mark: str) -> int:
    return int(mark.partition("/")[0], 16)


def _mark(target: Target) -> str:
    return f"{target.mark:#x}/0xffffffff"


def _change_lines(change: TableChange) -> Iterator[str]:
    yield f"*{change.table}"
    # Naming a chain makes it, or empties the one that is there.
    for name in (*change.chains, *change.dropped):
        yield f":{name} - [0:0]"
    for chain, rule in change.removed_jumps:
        yield f"-D {chain} {render_rule(rule)}"
    yield from _appended_rules(change)
    for name in change.dropped:
        yield f"-X {name}"
    yield "COMMIT"


def _appended_rules(change: TableChange) -> Iterator[str]:
    for name, rules in change.chains.items():
        for rule in rules:
            yield f"-A {name} {render_rule(rule)}"
    # Jumps come last: who pastes command after command has no half-filled chain in use.
    for chain, rule in reversed(change.inserted_jumps):
        yield f"-I {chain} {render_rule(rule)}"
    for chain, rule in change.added_jumps:
        yield f"-A {chain} {render_rule(rule)}"


def route_commands(plan: Plan, family: Family) -> Iterator[str]:
    """Write what else a plan needs of one family, as commands of ip(8): addresses of lo, policy rules and routes."""
    ip = "ip" if family is Family.IPV4 else "ip -6"
    if family is Family.IPV6:
        yield from (f"ip -6 addr add {address} dev lo" for address in plan.addresses)
    for route in plan.routes:
        if route.family is family:
            yield f"{ip} rule add fwmark {route.mark:#x} lookup {route.table}"
            yield f"{ip} route replace local default dev lo table {route.table}"
