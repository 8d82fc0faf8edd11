"""Proxy settings → the file that Envoy starts from. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.sidecar.bootstrap import v2, v3
from istio_init.sidecar.bootstrap.override import merge

if TYPE_CHECKING:
    from istio_init.sidecar.bootstrap.settings import ProxySettings

FLAVOURS = {"v3": v3.render, "v2": v2.render}


def render_bootstrap(settings: ProxySettings, flavour: str = "v3", override: dict[str, Any] | None = None) -> str:
    """Write the bootstrap file: strict JSON that ends with a newline, its keys in a stable order.

    Args:
        settings: who the proxy is, and where its control plane is.
        flavour: `v3` for today's Envoy, `v2` for one of Istio 1.0.
        override: laid over the result; see `istio_init.sidecar.bootstrap.override.merge`.
    """
    return json.dumps(merge(FLAVOURS[flavour](settings), override or {}), indent=2) + "\n"
