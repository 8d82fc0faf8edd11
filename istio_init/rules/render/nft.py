"""Rules in nft(8) syntax: a plan as one transaction, for `nft -f`.

Each family has its own table, named `istio-init`, which the transaction replaces as a whole. A built-in chain of iptables
becomes a base chain with the same hook, priority and default verdict. All tables of iptables share this one table, so chains
are named TABLE_CHAIN.

Some matches need more than one nft rule; `istio_init.rules.matches.owners` explains why. They become a chain, called a
guard, which returns if the match does not hold, and otherwise executes the rule's target.
"""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.changes import TableChange, compare, desired, stand_first
from istio_init.rules.matches import MATCHES, TARGETS
from istio_init.rules.model import (
    NFT_TABLE,
    Family,
    KernelRule,
    MatchKind,
    OpaqueRule,
    Plan,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
)
from istio_init.rules.render.iptables import protocol_of, route_commands
from istio_init.rules.render.nft_sets import COMMENT_BYTES, Joined, canonical, join

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from istio_init.rules.matches.kinds import MatchType

    Standing = Mapping[str, str]  # see `istio_init.rules.render.nft_listing.Listing.chains`

FAMILY, PROTOCOL = "{family}", "{protocol}"  # placeholders in the expressions of matches
FAMILIES = {Family.IPV4: "ip", Family.IPV6: "ip6"}

# Priorities of iptables' tables: linux/netfilter_ipv4.h.
PRIORITIES = {Table.RAW: -300, Table.MANGLE: -150, Table.NAT: -100, Table.FILTER: 0}

# Of two chains with the same priority, the kernel runs the one that came last (nf_hook_grow in net/netfilter/core.c). A
# lower one does not depend on that; nobody else uses that which is lower by one.
AHEAD = 1


def render_nft(plan: Plan) -> str:
    """Return a script for `nft -f` that replaces the tables of the plan's families.

    nft cannot add the policy route of TPROXY; the script has its commands as comments.
    """
    lines = [f"# {plan.layout}\n"]
    lines.extend(f"# also needed: {command}\n" for family in plan.families() for command in route_commands(plan, family))
    return "".join(lines) + render_tables({family: compare(desired(plan, family), {}) for family in plan.families()})


def render_tables(
    families: Mapping[Family, Sequence[TableChange]],
    absent: Collection[Family] = frozenset(),
    standing: Mapping[Family, Standing] | None = None,
) -> str:
    """Return the transaction after which each family has exactly the chains and jumps that its changes add.

    A base chain that stays is emptied and filled again, not replaced: while the transaction is committed, a packet can pass
    a base chain that goes and then, at the same hook, one that comes; what the first marks, the second would save.

    Args:
        families: the changes, by family.
        absent: families that have no table of ours yet; deleting none saves the kernel a wait of 12 ms.
        standing: what is known of the chains that the tables have.

    Raises:
        Unsupported: nft cannot express a rule.
    """
    lines = []
    for family, changes in families.items():
        chains, present = _all_chains(family, changes), (standing or {}).get(family, {})
        if family in absent:
            lines.append(f"create table {_name(family)}")
        elif chains and present:
            lines += _emptied(family, chains, present)
        else:
            # Deleting a missing table is an error (`destroy` needs nft 1.0.7), but adding an existing one is not.
            lines += [f"add table {_name(family)}", f"delete table {_name(family)}"]
        lines += _filled(family, chains)
    return "".join(f"{line}\n" for line in lines)


def render_gains(families: Mapping[Family, Sequence[TableChange]], standing: Mapping[Family, Standing]) -> str:
    """Return the transaction that must come before that of `render_tables`, or "" if none must.

    Where one table of iptables loses a base chain and another gains one, such as nat and mangle when TPROXY follows
    REDIRECT, a single transaction would let a packet escape that has passed the hook of the gain before, and passes that of
    the loss after it. So gains come first, as `istio_init.rules.changes.compare` has it for iptables.
    """
    lines = []
    for family, changes in families.items():
        old, new = standing.get(family, {}), _all_chains(family, changes)
        losing = {_table_of(name) for name, declared in old.items() if declared and name not in new}
        gaining = {name: rules for name, rules in new.items() if _table_of(name) not in losing}
        if losing and any(name not in old for name in gaining):
            lines += _emptied(family, gaining, {name: one for name, one in old.items() if _table_of(name) not in losing})
            lines += _filled(family, gaining)
    return "".join(f"{line}\n" for line in lines)


def _emptied(family: Family, chains: Mapping[str, list[str]], standing: Standing) -> list[str]:
    """Return the lines that remove all rules, and all chains but the base chains that stay."""
    gone = [name for name, declared in standing.items() if not declared or chains.get(name, [])[:1] != [declared]]
    return [
        *(f"flush chain {_name(family)} {name}" for name in standing),
        *(f"delete chain {_name(family)} {name}" for name in gone),
    ]


def _filled(family: Family, chains: Mapping[str, list[str]]) -> list[str]:
    if not chains:
        return []
    lines = [line for name, rules in chains.items() for line in (f"\tchain {name} {{", *(f"\t\t{r}" for r in rules), "\t}")]
    return [f"table {_name(family)} {{", *lines, "}"]


def _name(family: Family) -> str:
    return f"{FAMILIES[family]} {NFT_TABLE}"


def _all_chains(family: Family, changes: Sequence[TableChange]) -> dict[str, list[str]]:
    return {chain: rules for change in changes for chain, rules in _chains(family, change).items()}


def _table_of(chain: str) -> str:
    return chain.partition("_")[0]


def canonical_tables(tables: Snapshot) -> Snapshot:
    """Return equivalent tables, with rules in the form in which they are read from a listing.

    Raises:
        Unsupported: a rule is opaque.
    """
    return {
        table: TableState(
            chains={name: canonical(_known(rules)) for name, rules in state.chains.items()},
            jumps=tuple(
                (name, rule)
                for name, rules in by_chain((*state.inserted, *state.jumps)).items()
                for rule in canonical(_known(rules))
            ),
        )
        for table, state in tables.items()
    }


def by_chain(jumps: Iterable[tuple[str, KernelRule]]) -> dict[str, list[KernelRule]]:
    """Group rules by built-in chain, keeping their order."""
    chains: dict[str, list[KernelRule]] = {}
    for name, rule in jumps:
        chains.setdefault(name, []).append(rule)
    return chains


def hook(table: Table, chain: str, *, is_first: bool = False) -> tuple[str, str, int]:
    """Return the type, hook and priority of the base chain that stands for a built-in chain.

    Args:
        table: of iptables.
        chain: the built-in chain.
        is_first: whether it comes before those of iptables and of others, which have the usual priority.
    """
    # Only the type `route` looks up the route again after a mark has changed (nft(8)).
    kind = "nat" if table is Table.NAT else "route" if (table, chain) == (Table.MANGLE, "OUTPUT") else "filter"
    return kind, chain.lower(), PRIORITIES[table] - AHEAD * is_first


def declaration(hooked: tuple[str, str, int]) -> str:
    """Return the line that declares a base chain of this type, hook and priority."""
    kind, point, priority = hooked
    return f"type {kind} hook {point} priority {priority}; policy accept;"


def _known(rules: Iterable[KernelRule]) -> Iterator[Rule]:
    for rule in rules:
        if isinstance(rule, OpaqueRule):
            raise Unsupported(f"a rule that is not ours cannot be written again: {rule.text}")
        yield rule


def _chains(family: Family, change: TableChange) -> dict[str, list[str]]:
    """Return the lines of each chain of one table."""
    chains: dict[str, list[str]] = {}
    for name, rules in by_chain((*change.inserted_jumps, *change.added_jumps)).items():
        chains[f"{change.table}_{name}"] = [declaration(hook(change.table, name, is_first=stand_first(rules)))]
        _Writer(family, change, name, chains).write(rules)
    for name, content in change.chains.items():
        _Writer(family, change, name, chains).write(content)
    return chains


class _Writer:
    """Writes the rules of one chain, and the guards that they need."""

    def __init__(self, family: Family, change: TableChange, chain: str, chains: dict[str, list[str]]) -> None:
        self._family = family
        self._change = change
        self._chain = chain
        self._name = f"{change.table}_{chain}"
        self._chains = chains
        self._guards: dict[tuple[str, ...], str] = {}

    def write(self, rules: Iterable[KernelRule]) -> None:
        """Add the lines of all rules to their chain."""
        lines = self._chains.setdefault(self._name, [])
        for joined in join(_known(rules)):
            lines.extend(self._lines(joined))

    def _lines(self, joined: Joined) -> Iterator[str]:
        rule = joined.rule
        conditions = "".join(f"{condition} " for condition in self._conditions(joined))
        if any(MATCHES[match.kind].is_guarded(match) for match in rule.matches):
            yield f"{conditions}counter jump {self._guard(rule)}{_comment(rule.why)}"
            return
        yield f"{conditions}counter {self._statement(rule.target)}{_comment(rule.why)}"
        if why := TARGETS[rule.target.kind].nft_drops:
            yield f"{conditions}counter drop{_comment(why)}"

    def _conditions(self, joined: Joined) -> Iterator[str]:
        protocol = protocol_of(joined.rule)
        has_port = any(PROTOCOL in MATCHES[match.kind].nft for match in joined.rule.matches)
        for place, match in enumerate(joined.rule.matches):
            known = MATCHES[match.kind]
            # A match on a port implies the protocol; a comment is not needed, because the whole table is ours.
            if not known.nft or (match.kind is MatchKind.PROTOCOL and has_port) or known.is_guarded(match):
                continue
            values = joined.values if place == joined.place else known.nft_values(match.value)
            left = known.nft.replace(FAMILY, FAMILIES[self._family]).replace(PROTOCOL, protocol)
            yield f"{left} {'!= ' if match.negated else ''}{_set(known, values)}"

    def _guard(self, rule: Rule) -> str:
        """Create the guard for a rule, and return its name."""
        lines, condition = [], ""
        for known in MATCHES.values():
            values = [match.value for match in rule.matches if match.kind is known.kind and known.is_guarded(match)]
            if values:
                returns, why = known.guard(values)
                lines.append(f"{returns} counter return{_comment(why)}")
                condition += f"{known.guard_condition} " if known.guard_condition else ""
        # In a guard, `return` would only go back to the chain that RETURN is supposed to leave.
        statement = "accept" if self._ends_with(rule.target) else self._statement(rule.target)
        lines.append(f"{condition}counter {statement}{_comment(rule.why)}")
        name = self._guards.setdefault(tuple(lines), f"{self._name}_if_{len(self._guards) + 1}")
        self._chains[name] = lines
        return name

    def _ends_with(self, target: Target) -> bool:
        """Return whether a target is RETURN and can be written as `accept`, because only the end of a base chain follows.

        Raises:
            Unsupported: something else follows; or it is ACCEPT, which could not be told from RETURN when read back.
        """
        jumps = by_chain((*self._change.inserted_jumps, *self._change.added_jumps)).values()
        elsewhere = [*map(list, self._change.chains.values()), *(rules[:-1] for rules in jumps)]
        is_followed = any(
            isinstance(rule, Rule) and rule.target.chain == self._chain for others in elsewhere for rule in others
        )
        if target.kind is TargetKind.ACCEPT or (target.kind is TargetKind.RETURN and is_followed):
            raise Unsupported(f"nft cannot express {target.kind} with such conditions in chain {self._name}")
        return target.kind is TargetKind.RETURN

    def _statement(self, target: Target) -> str:
        return TARGETS[target.kind].nft_text(target, self._change.table)


def _set(known: MatchType, values: Sequence[int | str]) -> str:
    texts = [known.nft_value(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _comment(text: str) -> str:
    return f' comment "{comment_text(text)}"' if text else ""


def comment_text(text: str) -> str:
    """Return a sentence as the text of an nft comment: without double quotes, and cut at a word if it is too long."""
    text = text.replace('"', "'")
    if len(text.encode()) > COMMENT_BYTES:
        room = text.encode()[: COMMENT_BYTES - len("…".encode())].decode(errors="ignore")
        text = f"{room.rpartition(' ')[0] or room}…"
    return text
