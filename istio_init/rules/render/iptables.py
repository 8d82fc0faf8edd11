"""Rules in the language of iptables(8), both ways: restore scripts, single commands, and back from iptables-save.

A rule is written as iptables-save (1.8) prints it, so what is in a kernel and what was planned can be laid side by side.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.changes import TableChange, compare, desired
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.matches.kinds import OF_PROTOCOL, PROTOCOLS, MatchType, TargetType
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
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Targets of iptables-extensions(8) that no rule of the same chain comes after, those that no plan has included.
ENDING_TARGETS = frozenset(
    ("DNAT", "NETMAP", "QUEUE", "NFQUEUE", *(one.name for one in TARGETS.values() if one.effect not in ("jumps", "goes on")))
)
OUR_COMMENT = f"-m comment --comment {OWNER_COMMENT} "
# iptables' programs take 255 words a rule (MAX_ARGC of xshared.h), `-A CHAIN` included. Conditions, of which a rule can have
# many, are written in three words instead of five where there would be more.
MOST_WORDS = 240
TABLES = {table.value: table for table in Table}
# What reads a rule word by word: extensions that have no option, the options of each extension, and those of iptables.
BARE = {known.extension: known for known in MATCHES.values() if not known.option}
EXTENSIONS: dict[str, dict[str, MatchType]] = {}
for _known in MATCHES.values():
    for _extension in PROTOCOLS if _known.extension == OF_PROTOCOL else (_known.extension,):
        EXTENSIONS.setdefault(_extension, {})[_known.option] = _known
PLAIN = EXTENSIONS.pop("")
NAMED: dict[str, list[TargetType]] = {}
for _target in TARGETS.values():
    NAMED.setdefault(_target.name, []).append(_target)


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
    if text.count(" ") > MOST_WORDS:
        return " ".join((*(_shorter(match, protocol) for match in rule.matches), render_target(rule.target)))
    return text


def render_match(match: Match, protocol: str) -> str:
    """Write one condition, the `-m` that it needs included.

    Args:
        match: the condition.
        protocol: that of the rule, whose extension knows ports.
    """
    known = MATCHES[match.kind]
    words = f"{known.option} {known.text(match.value)}" if known.option else ""
    if match.negated:
        words = f"! {words}"
    extension = protocol if known.extension == OF_PROTOCOL else known.extension
    return f"-m {extension} {words}".rstrip() if extension else words


def _shorter(match: Match, protocol: str) -> str:
    """Write a condition in fewer words: `-mowner ! --uid-owner=5`."""
    text = render_match(match, protocol)
    known = MATCHES[match.kind]
    if known.extension and known.option:
        return text.replace("-m ", "-m", 1).replace(f"{known.option} ", f"{known.option}=", 1)
    return text


def protocol_of(rule: Rule) -> str:
    """Name the protocol that a rule asks for, or nothing."""
    return next((str(match.value) for match in rule.matches if match.kind is MatchKind.PROTOCOL), "")


def render_target(target: Target) -> str:
    """Write what a rule does, from `-j` on."""
    return f"-j {TARGETS[target.kind].text(target)}"


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
    """Read one rule as iptables-save prints it, without `-A CHAIN`; what the model cannot express stays opaque."""
    if '"' in text:
        return OpaqueRule(text)
    matches: list[Match] = []
    negated = False
    options = PLAIN
    words = iter(text.split())
    for word in words:
        if word == "!":
            negated = True
        elif known := options.get(word) or PLAIN.get(word):
            value = known.parse(next(words, ""))
            if value is None:
                break
            matches.append(Match(known.kind, value, negated))
            negated = False
        elif word == "-m" and (extension := next(words, "")) in EXTENSIONS:
            options = EXTENSIONS[extension]
            if extension in BARE:
                matches.append(Match(BARE[extension].kind, "", negated))
                negated = False
        elif word == "-j":
            target = _parse_target(next(words, ""), list(words))
            return OpaqueRule(text) if target is None else Rule(tuple(matches), target)
        else:
            break
    return OpaqueRule(text)


def _parse_target(name: str, words: list[str]) -> Target | None:
    for known in NAMED.get(name) or NAMED[""]:
        target = known.parse(name, words)
        if target is not None:
            return target
    return None


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
        """Take note of a rule, as iptables-save prints it; `native` is kept where the model cannot express it."""
        if chain in OWN_CHAINS:
            self._chains[chain].append(_keep(parse_rule(text), native))
            return
        goal = _goal(text)
        if chain in BUILTIN_CHAINS and (goal in OWN_CHAINS or OUR_COMMENT in _unquoted(text)):
            place = self._jumps if chain in self._seen_foreign else self._inserted
            place.append((chain, _keep(parse_rule(text), native)))
            self._endings = [one._replace(is_ahead=one.is_ahead or one.chain == chain) for one in self._endings]
            return
        self._foreign = True
        self._seen_foreign.add(chain)
        if goal in OWN_CHAINS:
            self._users.append((goal, chain))
        if chain in BUILTIN_CHAINS and goal in ENDING_TARGETS and not _is_of_loopback(text):
            self._endings.append(Ending(chain, text, is_ahead=False))

    def state(self) -> TableState:
        """Return what was collected."""
        chains = {name: tuple(rules) for name, rules in self._chains.items()}
        return TableState(
            chains, tuple(self._jumps), self._foreign, tuple(self._users), tuple(self._inserted), tuple(self._endings)
        )


def _keep(rule: KernelRule, native: object) -> KernelRule:
    return rule._replace(native=native) if isinstance(rule, OpaqueRule) else rule


def _unquoted(text: str) -> str:
    """Leave out what stands in quotes: a comment or a log prefix, which may say anything."""
    if '"' not in text:
        return text
    return "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])


def _is_of_loopback(text: str) -> bool:
    """Return whether a rule looks at what is said to this host alone.

    Most plans do not capture that, and others (Docker's DNS) have good reasons for such rules.
    """
    words = ["", *text.split()]
    for before, option, value in zip(words, words[1:], words[2:], strict=False):
        if before != "!" and option == "-d" and (value.startswith(("127.", "::1/")) or value == "::1"):
            return True
        if before != "!" and option in ("-i", "-o") and value == "lo":
            return True
    return False


def _goal(text: str) -> str:
    """Name the chain or target that a rule leads to."""
    words = _unquoted(text).split()
    for index in range(len(words) - 2, -1, -1):
        if words[index] in ("-j", "-g"):
            return words[index + 1]
    return ""


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
