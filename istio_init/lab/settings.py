"""The lab's settings: its pods, their addresses, and the command lines of their programs. Pure."""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.lab.world import SHAPE_1_0, SHAPE_CURRENT
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, entry, find, names_with
from istio_init.rules.model import PROXY_UID, Family
from istio_init.rules.options import OPTIONS
from istio_init.rules.values import boolean

READY_TIMEOUT = 60.0  # seconds for the proxies to get ready
NAMESPACE = "default"
CONTROL_NAMESPACE = "istio-system"
CONTROL_PLANE = "istio-pilot"
CLIENT = "client"  # a pod outside the mesh, without rules or proxy
SERVICES = ("productpage", "reviews", "details", "ratings")  # from the Bookinfo example; further ones are numbered
MAX_PODS = 100
APP_PORT = 9080
STATUS_PORT = 15020
APP_UID = 1000
FIRST_POD = 10
# Kubernetes' names of address families, as in a Service's spec.ipFamilies.
FAMILY_NAMES = {"IPv4": Family.IPV4, "IPv6": Family.IPV6}


class Network(NamedTuple):
    """The lab's address ranges of one family; the decimal host number is appended to a prefix.

    Attributes:
        pods: the prefix of pods.
        services: the prefix of services; no interface has these addresses, so they are only reachable through a proxy.
        bits: the prefix length of the pods' network.
    """

    pods: str
    services: str
    bits: int


NETWORKS = {
    Family.IPV4: Network("10.244.0.", "10.96.0.", 24),
    Family.IPV6: Network("fd00:10:244::", "fd00:10:96::", 64),
}
CONFIG = "/etc/istio/proxy"
ENVOY = "/usr/local/bin/envoy"

# The injectors' values for an app on port 9080, keyed and ordered as in istio_init.rules.options.
COMMON = {
    "envoy_port": "15001",
    "proxy_uids": str(PROXY_UID),
    "mode": "REDIRECT",
    "service_cidrs": "*",
    "service_exclude_cidrs": "",
}


class LabLayout(NamedTuple):
    """What a layout means in the lab.

    Attributes:
        interception: the settings of an injected pod.
        shape: of the listeners that fit it.
        command: the command that writes its rules in a pod; empty for the default one.
    """

    interception: dict[str, str]
    shape: str
    command: tuple[str, ...] = ()


LAB_LAYOUTS = {
    ISTIO_1_0: LabLayout(COMMON | {"inbound_ports": str(APP_PORT), "inbound_exclude_ports": ""}, SHAPE_1_0),
    ISTIO_1_30: LabLayout(
        {"envoy_port": "15001", "inbound_capture_port": "15006"}
        | COMMON
        | {"inbound_ports": "*", "inbound_exclude_ports": "15090,15021,15020"},
        SHAPE_CURRENT,
        ("istio-iptables",),
    ),
}
FLAGS = {option.name: option for option in OPTIONS}


class LabSettings(NamedTuple):
    """The user's settings for a lab.

    Attributes:
        pods: the number of pods in the mesh; each calls the next one.
        layout: the layout of the rules, or an alias.
        shape: the shape of the listeners (`SHAPES`); empty for the layout's.
        backend: istio-init's backend.
        variant: istio-init's iptables variant: `auto`, `legacy` or `nft`.
        families: the address families of pods and services; the first one is used in the proxy's node ID.
        interception: settings of istio-init by name, which override those of `LAB_LAYOUTS`.
        proxy: additional arguments for `istio-init proxy`; they come last, so they take precedence.
        mutual_tls: whether proxies and control plane use mutual TLS.
        control_plane_account: the service account in the control plane's certificate.
        ready_timeout: seconds for proxies to receive their configuration; 0 to not wait for them.
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
    ready_timeout: float = READY_TIMEOUT

    @property
    def _traits(self) -> LabLayout:
        return entry(LAB_LAYOUTS, self.layout, "lab")

    @property
    def listeners(self) -> str:
        """The effective shape of listeners."""
        return self.shape or self._traits.shape

    @property
    def values(self) -> dict[str, str]:
        """The settings of istio-init in each pod, by name."""
        port = {"inbound_capture_port": "15006"} if self.listeners == SHAPE_CURRENT else {}
        # A pod with IPv6 only is recognised by its addresses.
        both = {"dual_stack": "true"} if len(self.families) > 1 else {}
        return self._traits.interception | port | both | dict(self.interception)

    @property
    def rules(self) -> tuple[str, ...]:
        """The arguments of istio-init in each pod, in the style of Istio 1.0 or of current Istio."""
        words = [*self._traits.command]
        words += [f"--backend={self.backend}"] if self.backend != "auto" else []
        words += [f"--iptables-variant={self.variant}"] if self.variant != "auto" else []
        return (*words, *self.flags)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of istio-init in each pod that define the rules."""
        words: list[str] = []
        for name, value in self.values.items():
            option = FLAGS[name]
            # The long name if `apply` uses the short one otherwise.
            flag = next((flag for flag in option.flags if flag != "-q"), "")
            words += [f"{flag}={value}"] if option.is_switch else [flag, value]
        return tuple(words)

    @property
    def mode(self) -> str:
        """The interception mode of the rules."""
        return self.values["mode"]

    @property
    def redirects_dns(self) -> bool:
        """Whether the rules redirect DNS queries to the proxy's resolver."""
        return boolean(self.values.get("redirect_dns", "false"), "--redirect-dns")

    def to_json(self) -> str:
        """Serialize these settings for another process."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> LabSettings:
        """Parse the output of `to_json`."""
        members = dict(zip(cls._fields, json.loads(text), strict=True))
        members["families"] = tuple(map(Family, members["families"]))
        members["interception"] = tuple((name, value) for name, value in members["interception"])
        members["proxy"] = tuple(members["proxy"])
        return cls(**members)


class PodPlan(NamedTuple):
    """A pod to create.

    Attributes:
        name: its name, in the style of a Deployment's.
        service: its service, which is also the proxy's service cluster.
        addresses: its addresses, one per family.
    """

    name: str
    service: str
    namespace: str
    addresses: tuple[str, ...]

    @property
    def address(self) -> str:
        """Its primary address."""
        return self.addresses[0]

    @property
    def domain(self) -> str:
        """The DNS suffix of its namespace."""
        return f"{self.namespace}.svc.cluster.local"


def mesh_pods(settings: LabSettings) -> tuple[PodPlan, ...]:
    """List the pods of the mesh, with rules and a proxy, one per service.

    Raises:
        InvalidInput: the number of pods is out of range, or the layout does not support an address family.
    """
    layout = find(settings.layout)
    if not layout.captures_ipv6 and Family.IPV6 in settings.families:
        problem = f"layout {layout.name} blocks IPv6 instead of capturing it"
        others = " or ".join(names_with(lambda other: other.captures_ipv6))
        raise InvalidInput("--ip-families", problem, f"IPv4, or --layout {others}")
    if not 1 <= settings.pods <= MAX_PODS:
        raise InvalidInput("--pods", f"{settings.pods} is out of range", f"1..{MAX_PODS}")
    names = [*SERVICES, *(f"service-{number}" for number in range(len(SERVICES) + 1, settings.pods + 1))]
    return tuple(
        PodPlan(f"{name}-v1", name, NAMESPACE, _addresses(settings, FIRST_POD + number))
        for number, name in enumerate(names[: settings.pods])
    )


def parse_families(text: str) -> tuple[Family, ...]:
    """Parse a list of address families, by Kubernetes' names, case-insensitively.

    Raises:
        InvalidInput: the list is empty, or has an unknown or duplicate family.
    """
    known = {name.lower(): family for name, family in FAMILY_NAMES.items()}
    found = tuple(known.get(word.strip().lower()) for word in text.split(","))
    families = tuple(family for family in found if family)
    if len(set(families)) < len(found):
        raise InvalidInput(
            "--ip-families", f"{text!r} is not a list of address families", "IPv4, IPv6, or both, separated by a comma"
        )
    return families


def control_pod(settings: LabSettings) -> PodPlan:
    """Return the control plane's pod."""
    return PodPlan(CONTROL_PLANE, CONTROL_PLANE, CONTROL_NAMESPACE, _addresses(settings, 2))


def client_pod(settings: LabSettings) -> PodPlan:
    """Return the pod outside the mesh."""
    return PodPlan(CLIENT, CLIENT, NAMESPACE, _addresses(settings, 3))


def gateway(family: Family) -> str:
    """Return the gateway address: the bridge's, in the lab's namespace."""
    return f"{NETWORKS[family].pods}1"


def vips(settings: LabSettings, number: int) -> tuple[str, ...]:
    """Return the virtual IPs of a service, by its number."""
    return tuple(f"{NETWORKS[family].services}{FIRST_POD + number}" for family in settings.families)


def _addresses(settings: LabSettings, host: int) -> tuple[str, ...]:
    return tuple(f"{NETWORKS[family].pods}{host}" for family in settings.families)


def proxy_arguments(settings: LabSettings, pod: PodPlan) -> tuple[str, ...]:
    """Return the arguments of Istio 1.0's sidecar container, plus those for readiness and the user's own."""
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
    """Return the environment of Istio 1.0's sidecar container."""
    return {
        "POD_NAME": pod.name,
        "POD_NAMESPACE": pod.namespace,
        "INSTANCE_IP": pod.address,
        # The metadata in which a current agent reports all of a pod's addresses.
        "ISTIO_META_INSTANCE_IPS": ",".join(pod.addresses),
        "ISTIO_META_POD_NAME": pod.name,
        "ISTIO_META_INTERCEPTION_MODE": settings.mode,
        "ISTIO_METAJSON_LABELS": json.dumps({"app": pod.service, "version": "v1"}),
    }


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line of a module of this package."""
    return (sys.executable, "-m", module, *arguments)
