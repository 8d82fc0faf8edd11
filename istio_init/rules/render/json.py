"""Plan → JSON, for programs that need to know what an apply would do, and why."""

from __future__ import annotations

import json

from istio_init.core.light import TYPE_CHECKING, Any
from istio_init.rules.render.iptables import render_rule

if TYPE_CHECKING:
    from istio_init.rules.model import Chain, Plan, Rule

SCHEMA_VERSION = 1


def render_json(plan: Plan) -> str:
    """Return the plan as one JSON object.

    Its members are `schema_version`, `layout`, `chains` (each with `family`, `table`, `chain`, `rules`, and `inserted` for
    rules at the head of a built-in chain) in the order in which they are created, `routes` (`mark`, `table`, `family`) and
    `addresses` of lo. A rule has `matches`, `target`, `text` (in iptables syntax) and `why`. New members do not change the
    version; changing the meaning of a member does.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "layout": plan.layout,
        "chains": [_chain(chain) for chain in plan.chains],
        "routes": [route._asdict() for route in plan.routes],
        "addresses": list(plan.addresses),
    }
    return json.dumps(document, indent=2) + "\n"


def _chain(chain: Chain) -> dict[str, Any]:
    return {
        "family": chain.family,
        "table": chain.table,
        "chain": chain.name,
        "rules": [_rule(rule) for rule in chain.rules],
        **({"inserted": [_rule(rule) for rule in chain.inserted]} if chain.inserted else {}),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    target = {name: value for name, value in rule.target._asdict().items() if value not in ("", None)}
    return {
        "matches": [match._asdict() for match in rule.matches],
        "target": target,
        "text": render_rule(rule),
        "why": rule.why,
    }
