"""The input and output of the layouts: a pod template, and the additions to it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput, shorten
from istio_init.kubernetes.agreement import MESH_PORTS
from istio_init.kubernetes.inject.settings import STATUS_PORT, SWITCHES
from istio_init.kubernetes.manifest import container_ports
from istio_init.rules.model import HEALTH_PORT, PROXY_UID, READINESS_PORT, Mode
from istio_init.rules.values import PORT_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.kubernetes.inject.settings import InjectSettings, PodAnnotations

Json = dict[str, Any]


class Workload(NamedTuple):
    """The owner of a pod, or the pod itself if it has none.

    Attributes:
        name: its name.
        namespace: its namespace; `default` if the manifest has none, although `kubectl -n` can choose another.
        kind: such as `Deployment`.
        api_version: such as `apps/v1`; empty if the manifest has none.
    """

    name: str
    namespace: str = "default"
    kind: str = "Pod"
    api_version: str = "v1"


class PodTemplate(NamedTuple):
    """The properties of a pod template that its additions depend on.

    Attributes:
        workload: the pod's owner.
        labels: the pod's labels.
        annotations: the pod's annotations.
        service_account: the pod's service account.
        containers: the names of the app's containers.
        ports: names of containers with the TCP ports that they declare.
        parsed: the parsed annotations.
        settings: the command line's settings.
    """

    workload: Workload
    labels: dict[str, str]
    annotations: dict[str, str]
    service_account: str
    containers: tuple[str, ...]
    ports: tuple[tuple[str, int], ...]
    parsed: PodAnnotations
    settings: InjectSettings

    @property
    def name(self) -> str:
        """The name of the owner."""
        return self.workload.name

    @property
    def app_ports(self) -> str:
        """The app's ports, comma-separated as in flags."""
        return ",".join(dict.fromkeys(str(port) for _, port in self.ports))

    def flag(self, option: str, default: str) -> str:
        """Return the value of a flag of the init container: that of its annotation, or the default."""
        return self.parsed.flags.get(option, default)

    def optional_flags(self, *flags: tuple[str, str]) -> tuple[str, ...]:
        """Return flags with their values, those with an annotation only.

        Args:
            flags: each flag and its `Option.name`.
        """
        words: list[str] = []
        for flag, name in flags:
            if name in self.parsed.flags:
                value = self.parsed.flags[name]
                words += [f"{flag}={value}"] if name in SWITCHES else [flag, value]
        return tuple(words)


class Additions(NamedTuple):
    """What is added to a pod.

    Attributes:
        init_containers: init containers.
        init_first: whether they go before the pod's own init containers instead of after them.
        containers: containers.
        volumes: volumes.
        labels: labels that the pod lacks.
        annotations: annotations that the pod lacks.
        status: additional members of the status annotation.
    """

    init_containers: list[Json]
    init_first: bool
    containers: list[Json]
    volumes: list[Json]
    labels: dict[str, str]
    annotations: dict[str, str]
    status: Json


def read_ports(spec: Json, where: str) -> tuple[tuple[str, int], ...]:
    """List the TCP ports that the app's containers declare.

    Raises:
        InvalidInput: a member of the spec has the wrong type.
    """
    try:
        return tuple(container_ports(spec))
    except ValueError as error:
        raise InvalidInput(where, str(error), "a valid Kubernetes pod") from None


def check_ports(ports: tuple[tuple[str, int], ...], annotations: PodAnnotations, where: str) -> tuple[str, ...]:
    """Compare the app's ports with the proxy's, and return warnings.

    Raises:
        InvalidInput: a port number is invalid, or the readiness port is already in use.
    """
    app = {port: container for container, port in ports}
    for port, container in app.items():
        if not 0 < port <= PORT_MAX:
            raise InvalidInput(where, f"container {container} declares port {port}", f"1 to {PORT_MAX}")
    if annotations.is_status_port_set:
        status_port = annotations.status_port
        own = {port: what for port, what in MESH_PORTS.items() if port not in (HEALTH_PORT, READINESS_PORT)}
        user = own.get(status_port) or (status_port in app and f"container {app[status_port]}")
        if user:
            annotation = f"{where}: annotation {STATUS_PORT}"
            raise InvalidInput(annotation, f"port {status_port} is used by {user}", "a port not used in the pod")
    return tuple(
        f"container {shorten(container)} declares port {port}, which the proxy uses ({MESH_PORTS[port]})"
        for port, container in app.items()
        if port in MESH_PORTS
    )


def field(name: str, path: str) -> Json:
    """Build a variable with a field of the pod (downward API)."""
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def variable(name: str, value: str) -> Json:
    """Build a variable with a literal value, in which the kubelet expands no `$(…)` references."""
    return {"name": name, "value": value.replace("$(", "$$(")}


def compact(value: Mapping[str, str]) -> str:
    """Render a map as compact JSON, sorted by key as in Go."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def proxy_user(mode: Mode) -> Json:
    """Return Envoy's user: with TPROXY, root, to bind to client addresses, in a group that is not captured."""
    if mode is Mode.TPROXY:
        return {"runAsUser": 0, "runAsGroup": PROXY_UID, "runAsNonRoot": False}
    return {"runAsUser": PROXY_UID}


def readiness_probe(port: int, first: int, period: int, failures: int) -> Json:
    """Build a probe of the proxy's readiness; times are in seconds."""
    return {
        "httpGet": {"path": "/healthz/ready", "port": port},
        "initialDelaySeconds": first,
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
