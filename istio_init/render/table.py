"""Plan → a table for people: chain by chain, each rule with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model import BUILTIN_CHAINS
from istio_init.render.iptables import render_match, render_target

if TYPE_CHECKING:
    from istio_init.model import Plan


def render_table(plan: Plan) -> str:
    """Write each chain with its rules numbered; the columns line up over the whole plan."""
    rows = [
        (" ".join(map(render_match, rule.matches)) or "(any)", render_target(rule.target).removeprefix("-j "), rule.why)
        for chain in plan.chains
        for rule in chain.rules
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"Layout {plan.layout}"]
    remaining = iter(rows)
    for chain in plan.chains:
        note = "  (built-in: these are appended)" if chain.name in BUILTIN_CHAINS else ""
        lines += ["", f"{chain.family} {chain.table} {chain.name}{note}"]
        for number, _ in enumerate(chain.rules, start=1):
            matches, target, why = next(remaining)
            lines.append(f"{number:4}  {matches:{widths[0]}}  {target:{widths[1]}}  {why}")
    if plan.route:
        lines += [
            "",
            f"policy route: fwmark {plan.route.mark:#x} → table {plan.route.table}: local default dev lo",
            "      packets with the mark are delivered to this host, whatever their destination",
        ]
    return "".join(f"{line}\n" for line in lines)
