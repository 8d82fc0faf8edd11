"""Settings → plan: the rules of a layout, each with its reason."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, entry
from istio_init.rules.model import Jump

if TYPE_CHECKING:
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings


# Each imports its module only when called: pod starts wait for imports, and need only one layout.
def _istio_1_0(settings: Settings) -> Plan:
    from istio_init.rules.layouts.istio_1_0 import build

    return build(settings)


def _istio_1_30(settings: Settings) -> Plan:
    from istio_init.rules.layouts.istio_1_30 import build

    return build(settings)


BUILD = {ISTIO_1_0: _istio_1_0, ISTIO_1_30: _istio_1_30}


def build_plan(settings: Settings) -> Plan:
    """Build the rule plan for `settings`, in their layout. Pure: equal settings give equal plans.

    Raises:
        InvalidInput: there is no such layout.
    """
    plan = entry(BUILD, settings.layout, "rules")(settings)
    if settings.jump == Jump.LAST:
        return plan
    from istio_init.rules.layouts.parts import first

    return first(plan)
