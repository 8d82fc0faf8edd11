"""The injection's settings: the command's options, and the pod's annotations, which take precedence.

Names and semantics of the annotations are Istio's (istio.io, "Resource Annotations"), but for those with this program's own
prefix, whose settings Istio does not have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.errors import InvalidInput, shorten
from istio_init.core.option import Value
from istio_init.kubernetes.agreement import MESH_PORTS
from istio_init.rules import values as parse
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, entry, find
from istio_init.rules.model import READINESS_PORT, Mode
from istio_init.rules.options import OPTIONS
from istio_init.rules.settings import NO_ACCOUNTS, parse_settings
from istio_init.rules.values import ALL
from istio_init.sidecar.bootstrap.settings import parse_proxy_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INIT_IMAGE = "istio-init"
PROXY_IMAGE = "istio-proxy"

INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
INTERCEPTION_MODE = "sidecar.istio.io/interceptionMode"
STATUS_PORT = "status.sidecar.istio.io/port"
PROXY_IMAGE_ANNOTATION = "sidecar.istio.io/proxyImage"
TRAFFIC_PREFIX = "traffic.sidecar.istio.io/"
OWN_PREFIX = "istio-init/"
INBOUND_PORTS = f"{TRAFFIC_PREFIX}includeInboundPorts"
# Annotation → the init container's flag that it sets, by `Option.name`.
TRAFFIC = {
    INTERCEPTION_MODE: "mode",
    INBOUND_PORTS: "inbound_ports",
    f"{TRAFFIC_PREFIX}excludeInboundPorts": "inbound_exclude_ports",
    f"{TRAFFIC_PREFIX}includeOutboundPorts": "outbound_ports",
    f"{TRAFFIC_PREFIX}excludeOutboundPorts": "outbound_exclude_ports",
    f"{TRAFFIC_PREFIX}includeOutboundIPRanges": "service_cidrs",
    f"{TRAFFIC_PREFIX}excludeOutboundIPRanges": "service_exclude_cidrs",
    f"{TRAFFIC_PREFIX}excludeInterfaces": "exclude_interfaces",
    f"{OWN_PREFIX}excludeInboundCIDRs": "inbound_exclude_cidrs",
    f"{OWN_PREFIX}excludeOutboundPortsForUIDs": "outbound_exclude_ports_for_uids",
    f"{OWN_PREFIX}dnsPort": "dns_port",
    f"{OWN_PREFIX}forwardDNS": "forward_dns",
    f"{OWN_PREFIX}jump": "jump",
}
# The flags of those that Istio does not have.
OWN_FLAGS = tuple(
    (option.flags[-1], option.name)
    for option in OPTIONS
    if option.name in {name for annotation, name in TRAFFIC.items() if annotation.startswith(OWN_PREFIX)}
)
SWITCHES = frozenset(option.name for option in OPTIONS if option.is_switch)
# Boolean words that Istio's injector accepts for this annotation, in addition to Go's.
WORDS = {"y": True, "yes": True, "on": True, "n": False, "no": False, "off": False}
# github.com/distribution/reference: host and port, path, tag and digest.
IMAGE = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,})?"
)
IMAGE_LENGTH = 600  # characters; a name has up to 255, a tag up to 128, and the longest digest 136


class InjectLayout(NamedTuple):
    """What a layout means for injected pods.

    Attributes:
        inbound_ports: what is captured of a pod that does not say.
        status_port: the default of the readiness probe's port; 0 for no probe.
        has_native_sidecars: whether its proxy may be a native sidecar.
        is_privileged: whether its init container is privileged by default.
    """

    inbound_ports: str
    status_port: int
    has_native_sidecars: bool
    is_privileged: bool


INJECT_LAYOUTS = {
    ISTIO_1_0: InjectLayout("", 0, has_native_sidecars=False, is_privileged=True),
    ISTIO_1_30: InjectLayout(ALL, READINESS_PORT, has_native_sidecars=True, is_privileged=False),
}


class InjectSettings(NamedTuple):
    """The command line's settings, for all pods.

    Attributes:
        layout: which rules, and the pod's shape; its name, or an alias.
        init_image: the init container's image.
        proxy_image: the proxy's image, unless an annotation overrides it.
        native_sidecar: whether the proxy is a native sidecar, an init container that keeps running; layout current only.
        discovery_address: the control plane as `HOST:PORT`; empty for the layout's default.
        zipkin_address: the Zipkin collector as `HOST:PORT`; empty for none, None for the layout's default.
        unprivileged: whether istio-1.0's init container gets single capabilities instead of being privileged.
    """

    layout: str = ISTIO_1_0
    init_image: str = INIT_IMAGE
    proxy_image: str = PROXY_IMAGE
    native_sidecar: bool = False
    discovery_address: str = ""
    zipkin_address: str | None = None
    unprivileged: bool = False

    @property
    def traits(self) -> InjectLayout:
        """What the layout means here."""
        return entry(INJECT_LAYOUTS, self.layout, "injection")

    def checked(self) -> InjectSettings:
        """Validate and return these settings.

        Raises:
            InvalidInput: a value is not allowed; the error names its flag.
        """
        traits = self.traits
        if self.native_sidecar and not traits.has_native_sidecars:
            layout = find(self.layout).name
            others = " or ".join(f"--layout {name}" for name, one in INJECT_LAYOUTS.items() if one.has_native_sidecars)
            raise InvalidInput("--native-sidecar", f"layout {layout} has no native sidecars", others)
        image(self.init_image, "--init-image")
        image(self.proxy_image, "--proxy-image")
        flags = {"discoveryAddress": self.discovery_address or None, "zipkinAddress": self.zipkin_address}
        # A control plane's name without a namespace refers to the pod's namespace; any value will do for validation.
        parse_proxy_settings("sidecar", flags, {"POD_NAMESPACE": "default"}, "192.0.2.1")
        return self


class PodAnnotations(NamedTuple):
    """A pod's parsed annotations, with defaults applied.

    Attributes:
        flags: `Option.name` → the value of the annotation that sets it.
        mode: how inbound connections reach the proxy.
        status_port: the port of the readiness probe; 0 disables it.
        is_status_port_set: whether an annotation sets it.
        proxy_image: the proxy's image.
        warnings: warnings about accepted values.
    """

    flags: dict[str, str]
    mode: Mode
    status_port: int
    is_status_port_set: bool
    proxy_image: str
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, annotations: Mapping[str, str], settings: InjectSettings, where: str) -> PodAnnotations:
        """Parse the annotations by the rules of the corresponding flags.

        Args:
            annotations: the pod's annotations.
            settings: the defaults.
            where: the file and the document, for errors.

        Raises:
            InvalidInput: a value is not allowed; the error names the annotation.
        """
        values = {
            option: Value(annotations[name], _annotation(where, name))
            for name, option in TRAFFIC.items()
            if name in annotations
        }
        captured = Value(settings.traits.inbound_ports, where)
        rules = parse_settings({"inbound_ports": captured, **values}, NO_ACCOUNTS, settings.layout)
        own_image = annotations.get(PROXY_IMAGE_ANNOTATION)
        return cls(
            flags={option: value.text for option, value in values.items()},
            mode=rules.mode,
            status_port=_status_port(annotations, settings.traits.status_port, where),
            is_status_port_set=STATUS_PORT in annotations,
            proxy_image=settings.proxy_image
            if own_image is None
            else image(own_image, _annotation(where, PROXY_IMAGE_ANNOTATION)),
            warnings=(*rules.warnings, *_unknown(annotations), *_own_ports(rules.inbound_ports)),
        )


def wants_injection(labels: Mapping[str, str], annotations: Mapping[str, str], where: str) -> bool:
    """Return whether a pod is to be injected; the default is yes, and its label takes precedence over its annotation.

    Raises:
        InvalidInput: the value is not a boolean.
    """
    for kind, values in (("label", labels), ("annotation", annotations)):
        text = values.get(INJECT, "")
        if text:
            if text.lower() in WORDS:
                return WORDS[text.lower()]
            try:
                return parse.boolean(text, f"{where}: {kind} {INJECT}")
            except InvalidInput as error:
                raise InvalidInput(error.where, error.problem, ", ".join((error.allowed, *WORDS))) from None
    return True


def image(text: str, where: str) -> str:
    """Validate an image reference.

    Raises:
        InvalidInput: it is malformed.
    """
    if len(text) > IMAGE_LENGTH or not IMAGE.fullmatch(text):
        raise InvalidInput(where, f"{text!r} is not an image reference", "[HOST[:PORT]/]NAME[:TAG][@DIGEST]")
    return text


def _unknown(annotations: Mapping[str, str]) -> Iterator[str]:
    for name in annotations:
        if name.startswith((TRAFFIC_PREFIX, OWN_PREFIX)) and name not in TRAFFIC:
            yield f"annotation {shorten(name)} is unknown and has no effect"


def _own_ports(captured: tuple[str, ...]) -> Iterator[str]:
    """Warn of listed ports that the proxy itself uses: captured, they are no longer reachable."""
    spans = [item.partition(":") for item in captured if item != ALL]
    for port, what in MESH_PORTS.items():
        if any(int(first) <= port <= int(last or first) for first, _, last in spans):
            yield f"annotation {INBOUND_PORTS} lists port {port}, which the proxy uses ({what})"


def _status_port(annotations: Mapping[str, str], default: int, where: str) -> int:
    if STATUS_PORT not in annotations:
        return default
    try:
        found = parse_proxy_settings("sidecar", {"statusPort": annotations[STATUS_PORT]}, {}, "192.0.2.1")
    except InvalidInput as error:
        raise InvalidInput(_annotation(where, STATUS_PORT), error.problem, error.allowed) from None
    return found.status_port


def _annotation(where: str, annotation: str) -> str:
    return f"{where}: annotation {annotation}"
