"""What decides how a pod is injected: the command's options, and the pod's own annotations, which win."""

from __future__ import annotations

from typing import NamedTuple

from istio_init.options import ISTIO_1_0

INIT_IMAGE = "istio-init:latest"
PROXY_IMAGE = "istio-proxy:latest"


class InjectSettings(NamedTuple):
    """What the command line says of all pods.

    Attributes:
        layout: `istio-1.0` or `current`.
        init_image: of the init container.
        proxy_image: of the proxy, where no annotation names another.
        native_sidecar: whether the proxy is an init container that goes on running; layout current only.
        discovery_address: the control plane as `HOST:PORT`; empty is the default of the layout.
        zipkin_address: where traces go, as `HOST:PORT`; empty is nowhere, None the default of the layout.
        unprivileged: whether istio-1.0's init container gets single capabilities instead of all that root can have.
    """

    layout: str = ISTIO_1_0
    init_image: str = INIT_IMAGE
    proxy_image: str = PROXY_IMAGE
    native_sidecar: bool = False
    discovery_address: str = ""
    zipkin_address: str | None = None
    unprivileged: bool = False
