"""Whether third-party rules may keep connections from ours; which ones do is found out only if there are any.

Most pods have none, and each waits for what is imported here.
"""

from __future__ import annotations

from istio_init.core.errors import IstioInitError
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.kernel.rule_sets import RuleSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.parts import Part
    from istio_init.rules.model import Family, Snapshot


def warn_of_rules_ahead(
    parts: Iterable[Part], others: Iterable[Part], wanted: Mapping[Family, Snapshot], observe: Observer
) -> list[str]:
    """Return a warning for each third-party rule that keeps connections from a plan that was just written.

    Args:
        parts: those that hold the plan.
        others: what was read of other rule sets.
        wanted: the plan's rules.
        observe: receives each command that is run.

    Returns:
        the warnings; what cannot be read is one, too, because the plan is in place all the same.
    """
    legacy = {
        family: found for one in others if RuleSet.LEGACY in one.backend.rule_sets for family, found in one.before.items()
    }
    warnings: list[str] = []
    for part in parts:
        for family, before in part.before.items():
            beside = part.backend.beside(family) or legacy.get(family, {})
            try:
                native = part.backend.native_tables(family) if wanted[family] else frozenset()
                if wanted[family] and (native or _has_rules(before) or _has_rules(beside)):
                    from istio_init.rules.kernel.ahead_warnings import Ours, warnings_of

                    warnings += warnings_of(Ours(part, family, wanted[family], beside, native), observe)
            except (IstioInitError, OSError) as error:
                warnings.append(f"third-party {family} rules that may take precedence over ours could not be read: {error}")
    return list(dict.fromkeys(warnings))


def _has_rules(tables: Snapshot) -> bool:
    return any(rules for state in tables.values() for rules in state.theirs.rules.values())
