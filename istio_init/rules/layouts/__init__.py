"""Settings → plan: which rules a layout wants, each with its reason."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from istio_init.core.errors import InvalidInput
from istio_init.rules.options import CURRENT, ISTIO_1_0, LAYOUTS

if TYPE_CHECKING:
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings

# The module of each layout, whose `build` makes the plan: each pod start waits for imports, and needs one layout.
MODULES = {ISTIO_1_0: "istio_1_0", CURRENT: "current"}


def build_plan(settings: Settings) -> Plan:
    """Make the rule plan for `settings`, in their layout.

    Raises:
        InvalidInput: there is no such layout.
    """
    if settings.layout not in MODULES:
        raise InvalidInput("layout", f"{settings.layout!r} is not a layout", " or ".join(LAYOUTS))
    plan: Plan = import_module(f"{__name__}.{MODULES[settings.layout]}").build(settings)
    return plan
