"""Plan → a table for people: chain by chain, each rule with its reason."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.model import BUILTIN_CHAINS
from istio_init.rules.render.iptables import protocol_of, render_match, render_target

if TYPE_CHECKING:
    from istio_init.rules.model import Chain, Plan, Rule


def render_table(plan: Plan) -> str:
    """Return each chain with its rules numbered; columns are aligned across the whole plan."""
    rows = [
        (_conditions(rule), render_target(rule.target).removeprefix("-j "), rule.why)
        for chain in plan.chains
        for rule in (*chain.inserted, *chain.rules)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"Layout {plan.layout}"]
    remaining = iter(rows)
    for chain in plan.chains:
        note = f"  (built-in: {_places(chain)})" if chain.name in BUILTIN_CHAINS else ""
        lines += ["", f"{chain.family} {chain.table} {chain.name}{note}"]
        for number, _ in enumerate((*chain.inserted, *chain.rules), start=1):
            matches, target, why = next(remaining)
            lines.append(f"{number:4}  {matches:{widths[0]}}  {target:{widths[1]}}  {why}")
    for route in plan.routes:
        lines += [
            "",
            f"{route.family} policy route: fwmark {route.mark:#x} → table {route.table}: local default dev lo",
            "      packets with the mark are delivered to this host, regardless of their destination",
        ]
    for address in plan.addresses:
        lines += ["", f"address {address} on lo: the proxy connects to its app from it"]
    return "".join(f"{line}\n" for line in lines)


def _places(chain: Chain) -> str:
    if not chain.inserted:
        return "these are appended"
    return f"{len(chain.inserted)} at the head, the others appended" if chain.rules else "these are at the head"


def _conditions(rule: Rule) -> str:
    protocol = protocol_of(rule)
    return " ".join(render_match(match, protocol) for match in rule.matches) or "(any)"
