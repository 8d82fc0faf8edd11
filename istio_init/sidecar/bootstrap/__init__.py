"""Renders proxy settings as Envoy's bootstrap file. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from istio_init.core.log import log_options
from istio_init.core.option import Option
from istio_init.sidecar.bootstrap import v2, v3
from istio_init.sidecar.bootstrap.override import merge
from istio_init.sidecar.bootstrap.settings import OPTIONS, ROLE

if TYPE_CHECKING:
    from istio_init.sidecar.bootstrap.settings import ProxySettings

FLAVOURS = {"v3": v3.render, "v2": v2.render}
FILE_OPTIONS = (
    ROLE,
    Option("envoy_api", ("--envoy-api",), metavar="API", choices=tuple(FLAVOURS), default="v3",
           help="API of the bootstrap file; v2 for Istio 1.0's Envoy. Default: v3."),
    Option("bootstrap_override", ("--bootstrap-override",), metavar="FILE", is_path=True,
           help="JSON or YAML to merge into the result; lists merge by `name`."),
)  # fmt: skip
# What the command `proxy` takes, and `bootstrap` besides its own.
PROXY_OPTIONS = (ROLE, *OPTIONS, *FILE_OPTIONS[1:], *log_options())


def render_bootstrap(settings: ProxySettings, flavour: str = "v3", override: dict[str, Any] | None = None) -> str:
    """Render the bootstrap file as strict JSON with a stable key order and a trailing newline.

    Args:
        settings: the proxy's settings.
        flavour: `v3` for current Envoys, `v2` for Istio 1.0's.
        override: merged into the result; see `istio_init.sidecar.bootstrap.override.merge`.
    """
    return json.dumps(merge(FLAVOURS[flavour](settings), override or {}), indent=2) + "\n"
