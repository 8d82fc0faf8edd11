"""Rules in iptables(8) syntax, both ways: writes restore scripts and commands, parses the output of iptables-save.

Rules are written as iptables-save (1.8) prints them, so that a kernel's rules can be compared with a plan's.
"""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.changes import TableChange, compare, desired
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.matches.kinds import OF_PROTOCOL, PROTOCOLS, MatchType, TargetType
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    CHAINS_OF,
    FIRST_COMMENT,
    OWNER_COMMENT,
    Family,
    Foreign,
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
    Theirs,
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OUR_COMMENTS = tuple(f"-m comment --comment {comment} " for comment in (OWNER_COMMENT, FIRST_COMMENT))
# The iptables programs accept 255 arguments per rule (MAX_ARGC in xshared.h), including `-A CHAIN`. A rule that would have
# more writes its matches, of which there can be many, with three arguments instead of five.
MAX_ARGUMENTS = 240
TABLES = {table.value: table for table in Table}
# The rules that today's istio-iptables appends to built-in chains of mangle for TPROXY: chain, matches, and target.
_LO = frozenset({MatchKind.PROTOCOL, MatchKind.OUT_INTERFACE})
LEFT_BY_ISTIO = frozenset(
    {
        ("PREROUTING", frozenset({MatchKind.PROTOCOL, MatchKind.MARK}), TargetKind.SAVE_MARK),
        ("OUTPUT", _LO | {MatchKind.MARK}, TargetKind.RETURN),
        ("OUTPUT", _LO | {MatchKind.DESTINATION, MatchKind.UID_OWNER}, TargetKind.MARK),
        ("OUTPUT", _LO | {MatchKind.DESTINATION, MatchKind.GID_OWNER}, TargetKind.MARK),
        ("OUTPUT", frozenset({MatchKind.PROTOCOL, MatchKind.CONNMARK}), TargetKind.RESTORE_MARK),
    }
)
# For parsing: extensions without an option, the options of each extension, and those of iptables itself.
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
    """Return a script for `iptables-restore --noflush` (ip6tables-restore for IPv6), for a namespace without our rules.

    iptables cannot add the policy route of TPROXY; the script has its commands as comments.
    """
    route = [f"# also needed: {command}\n" for command in route_commands(plan, family)]
    return "".join(route) + render_changes(compare(desired(plan, family), {}))


def render_commands(plan: Plan, family: Family, variant: Variant = Variant.PLAIN) -> str:
    """Return commands to paste into a root shell, for a namespace without our rules."""
    lines = list(route_commands(plan, family))
    for change in compare(desired(plan, family), {}):
        command = f"{command_name(family, variant)} -w -t {change.table}"
        lines.extend(f"{command} -N {name}" for name in change.chains)
        lines.extend(f"{command} {arguments}" for arguments in _appended_rules(change))
    return "".join(f"{line}\n" for line in lines)


def render_changes(changes: Iterable[TableChange]) -> str:
    """Return the script for `iptables-restore --noflush` that makes `changes`, with one transaction per table."""
    return "".join(f"{line}\n" for change in changes for line in _change_lines(change))


def render_rule(rule: KernelRule) -> str:
    """Return one rule, without `-A CHAIN`."""
    if isinstance(rule, OpaqueRule):
        return rule.text
    protocol = protocol_of(rule)
    text = " ".join((*(render_match(match, protocol) for match in rule.matches), render_target(rule.target)))
    if text.count(" ") > MAX_ARGUMENTS:
        return " ".join((*(_shorter(match, protocol) for match in rule.matches), render_target(rule.target)))
    return text


def render_match(match: Match, protocol: str) -> str:
    """Return one match, including its `-m`.

    Args:
        match: the match.
        protocol: the rule's protocol, whose extension has the options for ports.
    """
    known = MATCHES[match.kind]
    words = f"{known.option} {known.text(match.value)}" if known.option else ""
    if match.negated:
        words = f"! {words}"
    extension = protocol if known.extension == OF_PROTOCOL else known.extension
    return f"-m {extension} {words}".rstrip() if extension else words


def _shorter(match: Match, protocol: str) -> str:
    """Return a match with fewer arguments: `-mowner ! --uid-owner=5`."""
    text = render_match(match, protocol)
    known = MATCHES[match.kind]
    if known.extension and known.option:
        return text.replace("-m ", "-m", 1).replace(f"{known.option} ", f"{known.option}=", 1)
    return text


def protocol_of(rule: Rule) -> str:
    """Return the protocol that a rule matches, or ""."""
    return next((str(match.value) for match in rule.matches if match.kind is MatchKind.PROTOCOL), "")


def render_target(target: Target) -> str:
    """Return a target, including `-j`."""
    return f"-j {TARGETS[target.kind].text(target)}"


def command_name(family: Family, variant: Variant, verb: str = "") -> str:
    """Return the name of an iptables program: `iptables`, `ip6tables-legacy`, `iptables-nft-restore`."""
    parts = ("iptables" if family is Family.IPV4 else "ip6tables", "" if variant is Variant.PLAIN else variant, verb)
    return "-".join(part for part in parts if part)


def parse_save(text: str) -> Snapshot:
    """Parse the output of iptables-save, without counters, for one family.

    Raises:
        Unsupported: it is not its output.
    """
    tables: dict[Table, TableReader] = {}
    table: TableReader | None = None
    for line in text.splitlines():
        if line.startswith("*"):
            # No layout uses the others (security), so they are skipped.
            table = TableReader(TABLES[line[1:]]) if line[1:] in TABLES else None
            if table is not None:
                tables[TABLES[line[1:]]] = table
        elif table is None:
            continue
        elif line.startswith("-A "):
            chain, _, rule = line.removeprefix("-A ").partition(" ")
            table.add_rule(chain, rule)
        elif line.startswith(":"):
            chain, _, rest = line[1:].partition(" ")
            if not rest:
                raise Unsupported(f"iptables-save printed a line that cannot be read: {line!r}; is it iptables' own?")
            table.add_chain(chain, rest.partition(" ")[0])
    return {name: table.state() for name, table in tables.items()}


def complete_tables(text: str) -> frozenset[Table]:
    """Return the tables that iptables-save printed to their end; where it fails, the last one breaks off."""
    tables, current = set(), ""
    for line in text.splitlines():
        if line.startswith("*"):
            current = line[1:]
        elif line == "COMMIT" and current in TABLES:
            tables.add(TABLES[current])
    return frozenset(tables)


def parse_rule(text: str) -> KernelRule:
    """Parse one rule as iptables-save prints it, without `-A CHAIN`; a rule that the model cannot express is opaque."""
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
    """Collects the chains and rules of one table, and separates ours from third-party ones."""

    def __init__(self, name: Table) -> None:
        """Start with an empty table."""
        self._name = name
        self._chains: dict[str, list[KernelRule]] = {}
        self._jumps: list[tuple[str, KernelRule]] = []
        self._inserted: list[tuple[str, KernelRule]] = []
        self._users: list[tuple[str, str]] = []
        self._foreign = False
        self._seen_foreign: set[str] = set()  # chains in which a third-party rule was added
        self._others: dict[str, list[Foreign]] = {}
        self._ahead: dict[str, int] = {}
        self._dropping: set[str] = set()

    def add_chain(self, name: str, policy: str) -> None:
        """Add a chain; the policy of a user-defined one is `-`."""
        if name in CHAINS_OF[self._name]:
            self._chains[name] = []
            return
        self._others[name] = []
        if policy == "DROP":
            self._dropping.add(name)
        if policy != "ACCEPT":  # a changed policy, or a user-defined chain
            self._foreign = True

    def add_rule(self, chain: str, text: str, native: object = None, readings: Iterable[Foreign] | None = None) -> None:
        """Add a rule to the end of a chain.

        Args:
            chain: name of the chain.
            text: the rule as iptables-save prints it, without `-A CHAIN`.
            native: the backend's own object for it, kept if the model cannot express the rule.
            readings: what it means, where that is more than the text says, if it is a third party's.
        """
        if chain in self._chains:
            self._chains[chain].append(_keep(parse_rule(text), native))
            return
        if is_ours(self._name, chain, text) or self._is_left_by_istio(chain, text):
            place = self._jumps if chain in self._seen_foreign else self._inserted
            place.append((chain, _keep(parse_rule(text), native)))
            self._ahead[chain] = len(self._others.get(chain, ()))
            return
        self._foreign = True
        self._seen_foreign.add(chain)
        self._others.setdefault(chain, []).extend((Foreign(text),) if readings is None else readings)
        target = target_name(text)
        if target in CHAINS_OF[self._name]:
            self._users.append((target, chain))

    def _is_left_by_istio(self, chain: str, text: str) -> bool:
        """Return whether today's istio-iptables made a rule for TPROXY, without a comment, but beside chains of ours."""
        if self._name is not Table.MANGLE or "ISTIO_DIVERT" not in self._chains:
            return False
        rule = parse_rule(text)
        kinds = frozenset(match.kind for match in rule.matches) if isinstance(rule, Rule) else None
        return isinstance(rule, Rule) and (chain, kinds, rule.target.kind) in LEFT_BY_ISTIO

    def state(self) -> TableState:
        """Return the state of the table."""
        chains = {name: tuple(rules) for name, rules in self._chains.items()}
        others = {name: tuple(rules) for name, rules in self._others.items()}
        theirs = Theirs(others, self._ahead, frozenset(self._dropping))
        return TableState(chains, tuple(self._jumps), self._foreign, tuple(self._users), tuple(self._inserted), theirs)


def is_ours(table: Table, chain: str, text: str) -> bool:
    """Return whether a rule, as iptables-save prints it, is in a chain of ours, or leads there, or bears our comment."""
    own = CHAINS_OF[table]
    if chain in own or chain not in BUILTIN_CHAINS:
        return chain in own
    plain = unquoted(text)
    return target_name(text) in own or any(comment in plain for comment in OUR_COMMENTS)


def _keep(rule: KernelRule, native: object) -> KernelRule:
    return rule._replace(native=native) if isinstance(rule, OpaqueRule) else rule


def unquoted(text: str) -> str:
    """Return a rule without quoted strings (comments, log prefixes), which may contain anything."""
    if '"' not in text:
        return text
    return "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])


def target_name(text: str) -> str:
    """Return the name of a rule's target or chain, or ""."""
    words = unquoted(text).split()
    for index in range(len(words) - 2, -1, -1):
        if words[index] in ("-j", "-g"):
            return words[index + 1]
    return ""


def _change_lines(change: TableChange) -> Iterator[str]:
    yield f"*{change.table}"
    # Declaring a chain creates it, or empties an existing one.
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
    # Jumps come last, so that commands that are run one by one never use a half-filled chain.
    for chain, rule in reversed(change.inserted_jumps):
        yield f"-I {chain} {render_rule(rule)}"
    for chain, rule in change.added_jumps:
        yield f"-A {chain} {render_rule(rule)}"


def route_commands(plan: Plan, family: Family) -> Iterator[str]:
    """Yield the ip(8) commands for what else a plan needs in one family: addresses of lo, policy rules and routes."""
    ip = "ip" if family is Family.IPV4 else "ip -6"
    if family is Family.IPV6:
        yield from (f"ip -6 addr add {address} dev lo" for address in plan.addresses)
    for route in plan.routes:
        if route.family is family:
            yield f"{ip} rule add fwmark {route.mark:#x} lookup {route.table}"
            yield f"{ip} route replace local default dev lo table {route.table}"
