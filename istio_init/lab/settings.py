"""What a lab consists of: its pods, their addresses, and the command lines of what runs in them. Pure."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

from istio_init.errors import InvalidInput
from istio_init.model import PROXY_UID
from istio_init.options import CURRENT, ISTIO_1_0, LAYOUTS, OPTIONS

PATIENCE = 60.0  # seconds
NAMESPACE = "default"
CONTROL_NAMESPACE = "istio-system"
CONTROL_PLANE = "istio-pilot"
CLIENT = "client"  # a pod outside the mesh: no rules and no proxy
SERVICES = ("productpage", "reviews", "details", "ratings")  # the Bookinfo example; further ones are numbered
MAX_PODS = 100
APP_PORT = 9080
STATUS_PORT = 15020
APP_UID = 1000
NETWORK = "10.244.0"  # of the pods; only inside the lab
GATEWAY = f"{NETWORK}.1"
PREFIX = 24
VIPS = "10.96.0"  # of the services; nothing has these addresses, so only a proxy can reach what they stand for
FIRST_POD = 10
SHAPES = LAYOUTS  # each layout has a shape of listeners
CONFIG = "/etc/istio/proxy"
ENVOY = "/usr/local/bin/envoy"

# What injectors write for an app on port 9080, by the names of istio_init.options.
COMMON = {
    "envoy_port": "15001",
    "proxy_uids": str(PROXY_UID),
    "mode": "REDIRECT",
    "service_cidrs": "*",
    "service_exclude_cidrs": "",
}
INTERCEPTION = {
    ISTIO_1_0: COMMON | {"inbound_ports": str(APP_PORT), "inbound_exclude_ports": ""},
    CURRENT: COMMON | {"inbound_capture_port": "15006", "inbound_ports": "*", "inbound_exclude_ports": "15090,15021,15020"},
}
FLAGS = {option.name: option for option in OPTIONS}


class LabSettings(NamedTuple):
    """What a user may say about a lab.

    Attributes:
        pods: how many pods of the mesh there are; the first calls the second.
        layout: of the rules: `istio-1.0` or `current`.
        shape: of the listeners that the control plane serves (`SHAPES`); empty for the one that goes with the layout.
        backend: how istio-init reaches the rules.
        interception: settings of istio-init by name, laid over those of `INTERCEPTION`.
        proxy: further words for `istio-init proxy`; they come last, so they win.
        mutual_tls: whether proxies and control plane prove to each other who they are.
        control_plane_account: the service account that the control plane's certificate names.
        patience: seconds that proxies may take to get their configuration; with 0 they are not waited for.
    """

    pods: int = 2
    layout: str = ISTIO_1_0
    shape: str = ""
    backend: str = "auto"
    interception: tuple[tuple[str, str], ...] = ()
    proxy: tuple[str, ...] = ()
    mutual_tls: bool = False
    control_plane_account: str = "istio-pilot-service-account"
    patience: float = PATIENCE

    @property
    def listeners(self) -> str:
        """The shape of listeners that is served."""
        return self.shape or self.layout

    @property
    def values(self) -> dict[str, str]:
        """The settings of istio-init in each pod, by name."""
        port = {"inbound_capture_port": "15006"} if self.listeners == CURRENT else {}
        return INTERCEPTION[self.layout] | port | dict(self.interception)

    @property
    def rules(self) -> tuple[str, ...]:
        """The arguments of istio-init in each pod."""
        words = [f"--layout={self.layout}"] * (self.layout != ISTIO_1_0) + [f"--backend={self.backend}"] * (
            self.backend != "auto"
        )
        for name, value in self.values.items():
            option = FLAGS[name]
            # The long name, where a short one means something else to `apply`.
            flag = next((flag for flag in option.flags if flag != "-q"), "")
            words += [f"{flag}={value}"] if option.is_switch else [flag, value]
        return tuple(words)

    @property
    def mode(self) -> str:
        """The interception mode that the rules ask for."""
        return self.values["mode"]

    def to_json(self) -> str:
        """Write these settings for another process."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> LabSettings:
        """Read what `to_json` wrote."""
        pods, layout, shape, backend, interception, proxy, *others = json.loads(text)
        pairs = tuple((name, value) for name, value in interception)
        return cls(pods, layout, shape, backend, pairs, tuple(proxy), *others)


class PodPlan(NamedTuple):
    """A pod that is to be made.

    Attributes:
        name: as a Deployment would name it.
        service: the service that it belongs to, which is also the proxy's cluster.
        address: its own.
    """

    name: str
    service: str
    namespace: str
    address: str

    @property
    def domain(self) -> str:
        """The DNS suffix of its namespace."""
        return f"{self.namespace}.svc.cluster.local"


def mesh_pods(settings: LabSettings) -> tuple[PodPlan, ...]:
    """List the pods that have rules and a proxy, one for each service.

    Raises:
        InvalidInput: there are too few or too many.
    """
    if not 1 <= settings.pods <= MAX_PODS:
        raise InvalidInput("--pods", f"{settings.pods} is out of range", f"1..{MAX_PODS}")
    names = [*SERVICES, *(f"service-{number}" for number in range(len(SERVICES) + 1, settings.pods + 1))]
    return tuple(
        PodPlan(f"{name}-v1", name, NAMESPACE, f"{NETWORK}.{FIRST_POD + number}")
        for number, name in enumerate(names[: settings.pods])
    )


def control_pod() -> PodPlan:
    """Give the control plane's pod."""
    return PodPlan(CONTROL_PLANE, CONTROL_PLANE, CONTROL_NAMESPACE, f"{NETWORK}.2")


def client_pod() -> PodPlan:
    """Give the pod outside the mesh."""
    return PodPlan(CLIENT, CLIENT, NAMESPACE, f"{NETWORK}.3")


def vip(number: int) -> str:
    """Give the address of a service."""
    return f"{VIPS}.{FIRST_POD + number}"


def hosts_file(settings: LabSettings) -> str:
    """Write /etc/hosts: the names of services, as cluster DNS would give them, and of pods."""
    lines = ["127.0.0.1 localhost"]
    for number, pod in enumerate(mesh_pods(settings)):
        names = (pod.service, f"{pod.service}.{pod.namespace}", f"{pod.service}.{pod.domain}")
        lines += [f"{vip(number)} {' '.join(names)}", f"{pod.address} {pod.name}"]
    control = control_pod()
    for service in (control.service, "zipkin"):
        lines.append(f"{control.address} {service}.{control.namespace} {service}.{control.domain}")
    lines.append(f"{client_pod().address} {CLIENT}")
    return "\n".join(lines) + "\n"


def proxy_arguments(settings: LabSettings, pod: PodPlan) -> tuple[str, ...]:
    """Give the arguments of Istio 1.0's sidecar container, then readiness, then the user's own."""
    return (
        *("proxy", "sidecar", "--configPath", CONFIG, "--binaryPath", ENVOY, "--serviceCluster", pod.service),
        *("--drainDuration", "45s", "--parentShutdownDuration", "1m0s"),
        *("--discoveryAddress", f"{CONTROL_PLANE}.{CONTROL_NAMESPACE}:15007", "--discoveryRefreshDelay", "1s"),
        *("--zipkinAddress", f"zipkin.{CONTROL_NAMESPACE}:9411", "--connectTimeout", "10s", "--proxyAdminPort", "15000"),
        *("--controlPlaneAuthPolicy", "MUTUAL_TLS" if settings.mutual_tls else "NONE"),
        *("--statusPort", str(STATUS_PORT), "--applicationPorts", str(APP_PORT)),
        *settings.proxy,
    )


def proxy_environment(settings: LabSettings, pod: PodPlan) -> dict[str, str]:
    """Give the environment of Istio 1.0's sidecar container."""
    return {
        "POD_NAME": pod.name,
        "POD_NAMESPACE": pod.namespace,
        "INSTANCE_IP": pod.address,
        "ISTIO_META_POD_NAME": pod.name,
        "ISTIO_META_INTERCEPTION_MODE": settings.mode,
        "ISTIO_METAJSON_LABELS": json.dumps({"app": pod.service, "version": "v1"}),
    }


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Give the command line of a module of this package."""
    return (sys.executable, "-m", module, *arguments)
