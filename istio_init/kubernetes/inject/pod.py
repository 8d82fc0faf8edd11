"""A pod template as the pieces of its sidecar are made from it, and what they are. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.agreement import MESH_PORTS
from istio_init.kubernetes.inject.settings import STATUS_PORT
from istio_init.kubernetes.manifest import container_ports
from istio_init.rules.model import HEALTH_PORT, PROXY_UID, READINESS_PORT, Mode
from istio_init.rules.values import PORT_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.kubernetes.inject.settings import InjectSettings, Wishes

Json = dict[str, Any]


class Workload(NamedTuple):
    """What makes a pod, or the pod itself where nothing does.

    Attributes:
        name: its name.
        namespace: that it is in; `default` where its manifest names none, and whoever creates it may choose another.
        kind: such as `Deployment`.
        api_version: such as `apps/v1`; empty where the manifest does not say.
    """

    name: str
    namespace: str = "default"
    kind: str = "Pod"
    api_version: str = "v1"


class Pod(NamedTuple):
    """What the pieces depend on.

    Attributes:
        workload: what makes it.
        labels: the pod's.
        annotations: the pod's.
        service_account: that it runs under.
        containers: the names of the app's containers.
        ports: each container's name, and a TCP port that it declares.
        wishes: what the annotations ask for.
        settings: what the command line says.
    """

    workload: Workload
    labels: dict[str, str]
    annotations: dict[str, str]
    service_account: str
    containers: tuple[str, ...]
    ports: tuple[tuple[str, int], ...]
    wishes: Wishes
    settings: InjectSettings

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.workload.name

    @property
    def app_ports(self) -> str:
        """The app's ports, as a flag lists them."""
        return ",".join(dict.fromkeys(str(port) for _, port in self.ports))

    def flag(self, option: str, default: str) -> str:
        """Give the value of a flag of the init container: the annotation's, or the default."""
        return self.wishes.flags.get(option, default)


class Pieces(NamedTuple):
    """What is added to a pod.

    Attributes:
        init_containers: those of the sidecar.
        init_first: whether they go before the pod's own; else they go after them.
        containers: those of the sidecar.
        volumes: that they mount.
        labels: that the pod does not have.
        annotations: that the pod does not have.
        status: more members of the status annotation.
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
        InvalidInput: a part of the spec has the wrong type.
    """
    try:
        return tuple(container_ports(spec))
    except ValueError as error:
        raise InvalidInput(where, str(error), "a pod as Kubernetes has it") from None


def check_ports(ports: tuple[tuple[str, int], ...], wishes: Wishes, where: str) -> tuple[str, ...]:
    """Compare the app's ports with those of the proxy, and give what the user should know.

    Raises:
        InvalidInput: there is no such port, or readiness would be served where somebody else listens.
    """
    app = {port: container for container, port in ports}
    for port, container in app.items():
        if not 0 < port <= PORT_MAX:
            raise InvalidInput(where, f"container {container} declares port {port}", f"1 to {PORT_MAX}")
    if wishes.is_status_port_given:
        own = {port: what for port, what in MESH_PORTS.items() if port not in (HEALTH_PORT, READINESS_PORT)}
        taken = own.get(wishes.status_port) or (wishes.status_port in app and f"container {app[wishes.status_port]}")
        if taken:
            place = f"{where}: annotation {STATUS_PORT}"
            raise InvalidInput(
                place, f"port {wishes.status_port} is that of {taken}", "a port that nothing else in the pod has"
            )
    return tuple(
        f"container {container} declares port {port}, which is the proxy's own ({MESH_PORTS[port]})"
        for port, container in app.items()
        if port in MESH_PORTS
    )


def field(name: str, path: str) -> Json:
    """Make a variable that has a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def variable(name: str, value: str) -> Json:
    """Make a variable with a value that the kubelet leaves as it is: `$(` would begin a reference."""
    return {"name": name, "value": value.replace("$(", "$$(")}


def compact(value: Mapping[str, str]) -> str:
    """Write texts as JSON in one line, sorted by name as Go does."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def proxy_user(mode: Mode) -> Json:
    """Give the user of Envoy: under TPROXY root, to bind to clients' addresses, of a group that is not captured."""
    if mode is Mode.TPROXY:
        return {"runAsUser": 0, "runAsGroup": PROXY_UID, "runAsNonRoot": False}
    return {"runAsUser": PROXY_UID}


def readiness_probe(port: int, first: int, period: int, failures: int) -> Json:
    """Ask the proxy for its readiness; times are seconds."""
    return {
        "httpGet": {"path": "/healthz/ready", "port": port},
        "initialDelaySeconds": first,
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
