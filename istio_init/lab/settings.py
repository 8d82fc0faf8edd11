"""What a lab consists of: its pods, their addresses, and the command lines of what runs in them. Pure."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.rules.model import PROXY_UID, Family
from istio_init.rules.options import CURRENT, ISTIO_1_0, LAYOUTS, OPTIONS
from istio_init.rules.values import boolean

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
FIRST_POD = 10
# Kubernetes' names of address families, as in a Service's spec.ipFamilies.
FAMILY_NAMES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}


class Network(NamedTuple):
    """The lab's addresses of one family, which are only inside the lab; a host's decimal number comes behind a prefix.

    Attributes:
        pods: the prefix of pods.
        services: that of services; nothing has these addresses, so only a proxy can reach what they stand for.
        bits: how long the pods' network is.
    """

    pods: str
    services: str
    bits: int


NETWORKS = {
    Family.IPV4: Network("10.244.0.", "10.96.0.", 24),
    Family.IPV6: Network("fd00:10:244::", "fd00:10:96::", 64),
}
SHAPES = LAYOUTS  # each layout has a shape of listeners
CONFIG = "/etc/istio/proxy"
ENVOY = "/usr/local/bin/envoy"

# What injectors write for an app on port 9080, by the names of istio_init.rules.options, and in their order.
COMMON = {
    "envoy_port": "15001",
    "proxy_uids": str(PROXY_UID),
    "mode": "REDIRECT",
    "service_cidrs": "*",
    "service_exclude_cidrs": "",
}
INTERCEPTION = {
    ISTIO_1_0: COMMON | {"inbound_ports": str(APP_PORT), "inbound_exclude_ports": ""},
    CURRENT: {"envoy_port": "15001", "inbound_capture_port": "15006"}
    | COMMON
    | {"inbound_ports": "*", "inbound_exclude_ports": "15090,15021,15020"},
}
FLAGS = {option.name: option for option in OPTIONS}


class LabSettings(NamedTuple):
    """What a user may say about a lab.

    Attributes:
        pods: how many pods of the mesh there are; the first calls the second.
        layout: of the rules: `istio-1.0` or `current`.
        shape: of the listeners that the control plane serves (`SHAPES`); empty for the one that goes with the layout.
        backend: how istio-init reaches the rules.
        variant: which iptables it takes: `auto`, `legacy` or `nft`.
        families: of the addresses of pods and services; the first one is a pod's own in the proxy's name.
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
    variant: str = "auto"
    families: tuple[Family, ...] = (Family.IPV4,)
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
        # A pod of IPv6 alone is known by its addresses.
        both = {"dual_stack": "true"} if len(self.families) > 1 else {}
        return INTERCEPTION[self.layout] | port | both | dict(self.interception)

    @property
    def rules(self) -> tuple[str, ...]:
        """The arguments of istio-init in each pod: as pods of Istio 1.0 call it, or as those of today do."""
        words = ["istio-iptables"] if self.layout == CURRENT else []
        words += [f"--backend={self.backend}"] if self.backend != "auto" else []
        words += [f"--iptables-variant={self.variant}"] if self.variant != "auto" else []
        return (*words, *self.flags)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of istio-init in each pod that say which rules there are."""
        words: list[str] = []
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

    @property
    def redirects_dns(self) -> bool:
        """Whether the rules send requests for names to the proxy's resolver."""
        return boolean(self.values.get("redirect_dns", "false"), "--redirect-dns")

    def to_json(self) -> str:
        """Write these settings for another process."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> LabSettings:
        """Read what `to_json` wrote."""
        members = dict(zip(cls._fields, json.loads(text), strict=True))
        members["families"] = tuple(map(Family, members["families"]))
        members["interception"] = tuple((name, value) for name, value in members["interception"])
        members["proxy"] = tuple(members["proxy"])
        return cls(**members)


class PodPlan(NamedTuple):
    """A pod that is to be made.

    Attributes:
        name: as a Deployment would name it.
        service: the service that it belongs to, which is also the proxy's cluster.
        addresses: its own, one of each family.
    """

    name: str
    service: str
    namespace: str
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        """The one that it is known by."""
        return self.addresses[0]

    @property
    def domain(self) -> str:
        """The DNS suffix of its namespace."""
        return f"{self.namespace}.svc.cluster.local"


def mesh_pods(settings: LabSettings) -> tuple[PodPlan, ...]:
    """List the pods that have rules and a proxy, one for each service.

    Raises:
        InvalidInput: there are too few or too many, or they would have addresses that the rules do not know.
    """
    if settings.layout == ISTIO_1_0 and Family.IPV6 in settings.families:
        problem = f"the rules of layout {ISTIO_1_0} close IPv6 and do not capture it"
        raise InvalidInput("--ip-families", problem, f"IPv4, or --layout {CURRENT}")
    if not 1 <= settings.pods <= MAX_PODS:
        raise InvalidInput("--pods", f"{settings.pods} is out of range", f"1..{MAX_PODS}")
    names = [*SERVICES, *(f"service-{number}" for number in range(len(SERVICES) + 1, settings.pods + 1))]
    return tuple(
        PodPlan(f"{name}-v1", name, NAMESPACE, _addresses(settings, FIRST_POD + number))
        for number, name in enumerate(names[: settings.pods])
    )


def parse_families(text: str) -> tuple[Family, ...]:
    """Read address families, under Kubernetes' names, in any case.

    Raises:
        InvalidInput: there is none, one is unknown, or one stands there twice.
    """
    known = {name.lower(): family for name, family in FAMILY_NAMES.items()}
    found = tuple(known.get(word.strip().lower()) for word in text.split(","))
    families = tuple(family for family in found if family)
    if len(set(families)) < len(found):
        raise InvalidInput("--ip-families", f"{text!r} is no list of families", "IPv4, IPv6, or both with a comma between")
    return families


def control_pod(settings: LabSettings) -> PodPlan:
    """Give the control plane's pod."""
    return PodPlan(CONTROL_PLANE, CONTROL_PLANE, CONTROL_NAMESPACE, _addresses(settings, 2))


def client_pod(settings: LabSettings) -> PodPlan:
    """Give the pod outside the mesh."""
    return PodPlan(CLIENT, CLIENT, NAMESPACE, _addresses(settings, 3))


def gateway(family: Family) -> str:
    """Give the address of the lab's own end of all links."""
    return f"{NETWORKS[family].pods}1"


def vips(settings: LabSettings, number: int) -> tuple[str, ...]:
    """Give the addresses of a service, by its number."""
    return tuple(f"{NETWORKS[family].services}{FIRST_POD + number}" for family in settings.families)


def _addresses(settings: LabSettings, host: int) -> tuple[str, ...]:
    return tuple(f"{NETWORKS[family].pods}{host}" for family in settings.families)


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
        # Today's agent tells the control plane all of a pod's addresses under this name.
        "ISTIO_META_INSTANCE_IPS": ",".join(pod.addresses),
        "ISTIO_META_POD_NAME": pod.name,
        "ISTIO_META_INTERCEPTION_MODE": settings.mode,
        "ISTIO_METAJSON_LABELS": json.dumps({"app": pod.service, "version": "v1"}),
    }


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Give the command line of a module of this package."""
    return (sys.executable, "-m", module, *arguments)
