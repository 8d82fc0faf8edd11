"""Settings → plan: which rules a layout wants, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_init.rules.model import Plan
    from istio_init.rules.settings import Settings


def build_plan(settings: Settings) -> Plan:
    """Make the rule plan for `settings`, in their layout."""
    # Each pod start waits for imports, and needs one layout.
    if settings.layout == "current":
        from istio_init.rules.layouts.current import build
    else:
        from istio_init.rules.layouts.istio_1_0 import build
    return build(settings)
