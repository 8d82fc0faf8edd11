"""What decides how a pod is injected: the command's options, and the pod's own annotations, which win.

Names and meanings of the annotations are those of Istio (istio.io, "Resource Annotations").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.agreement import MESH_PORTS
from istio_init.rules import values as parse
from istio_init.rules.model import READINESS_PORT, Mode
from istio_init.rules.options import CURRENT, ISTIO_1_0, LAYOUTS
from istio_init.rules.settings import NO_ACCOUNTS, parse_settings
from istio_init.rules.values import ALL, Value
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
INBOUND_PORTS = f"{TRAFFIC_PREFIX}includeInboundPorts"
# The flag of the init container that each annotation decides, by `Option.name`.
TRAFFIC = {
    INTERCEPTION_MODE: "mode",
    INBOUND_PORTS: "inbound_ports",
    f"{TRAFFIC_PREFIX}excludeInboundPorts": "inbound_exclude_ports",
    f"{TRAFFIC_PREFIX}includeOutboundPorts": "outbound_ports",
    f"{TRAFFIC_PREFIX}excludeOutboundPorts": "outbound_exclude_ports",
    f"{TRAFFIC_PREFIX}includeOutboundIPRanges": "service_cidrs",
    f"{TRAFFIC_PREFIX}excludeOutboundIPRanges": "service_exclude_cidrs",
    f"{TRAFFIC_PREFIX}excludeInterfaces": "exclude_interfaces",
}
# Beside Go's words for truth values, those that Istio's injector takes for this annotation.
WORDS = {"y": True, "yes": True, "on": True, "n": False, "no": False, "off": False}
# github.com/distribution/reference: a host with a port, a path, a tag and a digest.
IMAGE = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,})?"
)


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

    def checked(self) -> InjectSettings:
        """Give the same settings, if each is allowed.

        Raises:
            InvalidInput: a value is not allowed; it is named by its flag.
        """
        if self.layout not in LAYOUTS:
            raise InvalidInput("--layout", f"{self.layout!r} is not a layout", " or ".join(LAYOUTS))
        if self.native_sidecar and self.layout != CURRENT:
            raise InvalidInput("--native-sidecar", f"layout {self.layout} has no such pods", f"--layout {CURRENT}")
        image(self.init_image, "--init-image")
        image(self.proxy_image, "--proxy-image")
        flags = {"discoveryAddress": self.discovery_address or None, "zipkinAddress": self.zipkin_address}
        # The name of a control plane without a namespace is one in the pod's own; which that is does not matter here.
        parse_proxy_settings("sidecar", flags, {"POD_NAMESPACE": "default"}, "192.0.2.1")
        return self


class Wishes(NamedTuple):
    """What a pod's annotations ask for.

    Attributes:
        flags: `Option.name` → the text of an annotation that decides it.
        mode: how inbound connections reach the proxy.
        status_port: where the proxy serves readiness; 0 is off.
        is_status_port_given: whether an annotation says so.
        proxy_image: the proxy's image.
        warnings: what the user should know about values that were accepted.
    """

    flags: dict[str, str]
    mode: Mode
    status_port: int
    is_status_port_given: bool
    proxy_image: str
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, annotations: Mapping[str, str], settings: InjectSettings, where: str) -> Wishes:
        """Read the annotations as the flags that they stand for are read.

        Args:
            annotations: the pod's.
            settings: what counts where there is no annotation.
            where: the file and the document.

        Raises:
            InvalidInput: a value is not allowed; `where` and the annotation say which.
        """
        values = {
            option: Value(annotations[name], _place(where, name)) for name, option in TRAFFIC.items() if name in annotations
        }
        every_port = {"inbound_ports": Value(ALL, where)} if settings.layout == CURRENT else {}
        rules = parse_settings({**every_port, **values}, NO_ACCOUNTS, settings.layout)
        given = PROXY_IMAGE_ANNOTATION in annotations
        return cls(
            flags={option: value.text for option, value in values.items()},
            mode=rules.mode,
            status_port=_status_port(annotations, settings.layout, where),
            is_status_port_given=STATUS_PORT in annotations,
            proxy_image=image(annotations[PROXY_IMAGE_ANNOTATION], _place(where, PROXY_IMAGE_ANNOTATION))
            if given
            else settings.proxy_image,
            warnings=(*rules.warnings, *_unknown(annotations), *_own_ports(rules.inbound_ports)),
        )


def wants_injection(labels: Mapping[str, str], annotations: Mapping[str, str], where: str) -> bool:
    """Tell whether a pod wants to be injected, as it does unless it says no; its label wins over its annotation.

    Raises:
        InvalidInput: the value is no truth value.
    """
    for kind, said in (("label", labels), ("annotation", annotations)):
        text = said.get(INJECT, "")
        if text:
            if text.lower() in WORDS:
                return WORDS[text.lower()]
            try:
                return parse.boolean(text, f"{where}: {kind} {INJECT}")
            except InvalidInput as error:
                raise InvalidInput(error.where, error.problem, ", ".join((error.allowed, *WORDS))) from None
    return True


def image(text: str, where: str) -> str:
    """Read the name of an image.

    Raises:
        InvalidInput: it cannot be one.
    """
    if not IMAGE.fullmatch(text):
        raise InvalidInput(where, f"{text!r} is not the name of an image", "[HOST[:PORT]/]NAME[:TAG][@DIGEST]")
    return text


def _unknown(annotations: Mapping[str, str]) -> Iterator[str]:
    for name in annotations:
        if name.startswith(TRAFFIC_PREFIX) and name not in TRAFFIC:
            yield f"annotation {name} is not known here and has no effect"


def _own_ports(captured: tuple[str, ...]) -> Iterator[str]:
    """Tell which listed ports are the proxy's: captured, they would reach it twice, and whoever asks for them nobody."""
    spans = [item.partition(":") for item in captured if item != ALL]
    for port, what in MESH_PORTS.items():
        if any(int(first) <= port <= int(last or first) for first, _, last in spans):
            yield f"annotation {INBOUND_PORTS} lists port {port}, which is the proxy's own ({what})"


def _status_port(annotations: Mapping[str, str], layout: str, where: str) -> int:
    if STATUS_PORT not in annotations:
        return READINESS_PORT if layout == CURRENT else 0
    try:
        found = parse_proxy_settings("sidecar", {"statusPort": annotations[STATUS_PORT]}, {}, "192.0.2.1")
    except InvalidInput as error:
        raise InvalidInput(_place(where, STATUS_PORT), error.problem, error.allowed) from None
    return found.status_port


def _place(where: str, annotation: str) -> str:
    return f"{where}: annotation {annotation}"
