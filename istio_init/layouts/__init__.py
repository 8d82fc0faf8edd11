"""Settings → plan: which rules a layout wants, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.layouts import istio_1_0

if TYPE_CHECKING:
    from istio_init.model import Plan
    from istio_init.settings import Settings


def build_plan(settings: Settings) -> Plan:
    """Make the rule plan for `settings`, in the layout of Istio 1.0."""
    return istio_1_0.build(settings)
