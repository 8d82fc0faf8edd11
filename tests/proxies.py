"""The table of proxies: what a pod gives, for goldens and for the real Envoy."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from istio_init.sidecar.bootstrap.settings import ProxySettings, parse_proxy_settings

# The productpage pod of Istio 1.0.5.
POD_FLAGS = {
    "configPath": "/etc/istio/proxy",
    "binaryPath": "/usr/local/bin/envoy",
    "serviceCluster": "productpage",
    "drainDuration": "45s",
    "parentShutdownDuration": "1m0s",
    "discoveryAddress": "istio-pilot.istio-system:15007",
    "discoveryRefreshDelay": "1s",
    "zipkinAddress": "zipkin.istio-system:9411",
    "connectTimeout": "10s",
    "proxyAdminPort": "15000",
    "controlPlaneAuthPolicy": "NONE",
}
POD_ENVIRONMENT = {
    "POD_NAME": "productpage-v1-1",
    "POD_NAMESPACE": "default",
    "INSTANCE_IP": "10.1.1.1",
    "ISTIO_META_POD_NAME": "productpage-v1-1",
    "ISTIO_META_INTERCEPTION_MODE": "REDIRECT",
    "ISTIO_METAJSON_LABELS": '{"app":"productpage","version":"v1"}\n',
}


class Proxy(NamedTuple):
    """One proxy: the flags that differ from the pod's, by name; an empty one is left out."""

    name: str
    flags: dict[str, str]
    role: str = "sidecar"

    def settings(self) -> ProxySettings:
        return parse_proxy_settings(self.role, {**POD_FLAGS, **self.flags}, POD_ENVIRONMENT, "")


PROXIES = (
    Proxy("pod", {}),
    Proxy("bare", {"zipkinAddress": "", "discoveryAddress": "pilot:15007"}, "router"),
    Proxy(
        "everything",
        {
            "availabilityZone": "zone-1",
            "controlPlaneAuthPolicy": "MUTUAL_TLS",
            "statsdUdpAddress": "10.0.0.9:9125",
            "proxyAdminPort": "15999",
            "connectTimeout": "500ms",
            "discoveryRefreshDelay": "1m30s",
            "discoveryGrpcPort": "15099",
            "discoveryAddress": "[fd00::1]:15007",
            "ip": "fd00::2",
        },
        "ingress",
    ),
)

# Each option that adds or changes a part of the file, and its values; every combination must be valid to Envoy.
CHOICES = {
    "zipkinAddress": ("", "zipkin:9411"),
    "statsdUdpAddress": ("", "10.0.0.9:9125"),
    "controlPlaneAuthPolicy": ("NONE", "MUTUAL_TLS"),
    "availabilityZone": ("", "zone-1"),
    "connectTimeout": ("1ms", "30s"),
    "ip": ("10.1.1.1", "fd00::2"),
}
COMBINATIONS = tuple(
    Proxy("-".join(value or "none" for value in values), dict(zip(CHOICES, values, strict=True)))
    for values in product(*CHOICES.values())
)
