"""The world of the lab's control plane: services, pods, and the shape of their proxies' listeners. Pure.

A world is stored in one JSON file, which users and tests can change while the lab runs.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import InvalidInput
from istio_init.rules.model import Family, Mode
from istio_init.sidecar.bootstrap.settings import PORT_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Json = dict[str, Any]

SHAPE_1_0, SHAPE_CURRENT = "istio-1.0", "current"
SHAPES = (SHAPE_1_0, SHAPE_CURRENT)
DEFAULT_NAMESPACE = "default"
DOMAIN = "svc.cluster.local"
NODE_PARTS = 4  # role, address, ID and domain


def family_of(address: str) -> Family:
    """Return the family of an address."""
    return Family.IPV6 if ":" in address else Family.IPV4


def families_of(addresses: Iterable[str]) -> tuple[Family, ...]:
    """List the distinct families of addresses, in order of first appearance."""
    return tuple(dict.fromkeys(map(family_of, addresses)))


class Service(NamedTuple):
    """A service.

    Attributes:
        name: its name, without the namespace.
        namespace: its Kubernetes namespace.
        addresses: its virtual IPs, which no interface has, at most one per family.
        port: its port.
        pods: the names of its pods, in the same namespace.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    port: int
    pods: tuple[str, ...]

    @property
    def host(self) -> str:
        """Its fully qualified domain name."""
        return f"{self.name}.{self.namespace}.{DOMAIN}"


class LabPod(NamedTuple):
    """An app with its proxy.

    Attributes:
        name: its name, unique in its namespace.
        namespace: its Kubernetes namespace.
        addresses: its addresses, at most one per family; each of them identifies its proxy.
        mode: how inbound connections reach the proxy: REDIRECT or TPROXY.
        port: the app's port.
        service: its service, in the same namespace; empty for a pod that is only a client.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    mode: str
    port: int
    service: str


class Extra(NamedTuple):
    """Extra user-defined resources, as JSON of Envoy's v3 API, which every proxy gets in addition to its own."""

    listeners: tuple[Json, ...] = ()
    clusters: tuple[Json, ...] = ()
    endpoints: tuple[Json, ...] = ()
    routes: tuple[Json, ...] = ()


class Proxy(NamedTuple):
    """The identity of a proxy.

    Attributes:
        pod: its pod; None for an address that is not in the world.
        namespace: the namespace whose services it can call by short names.
    """

    pod: LabPod | None
    namespace: str


class World(NamedTuple):
    """The control plane's configuration.

    Attributes:
        shape: one of `SHAPES`, see `istio_init.lab.listeners`.
    """

    shape: str
    services: tuple[Service, ...]
    pods: tuple[LabPod, ...]
    extra: Extra = Extra()

    def to_json(self) -> str:
        """Serialize the world for `from_json`."""
        members = {
            "shape": self.shape,
            "services": [service._asdict() for service in self.services],
            "pods": [pod._asdict() for pod in self.pods],
            "extra": self.extra._asdict(),
        }
        return json.dumps(members, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> World:
        """Parse a world.

        Args:
            text: JSON.
            where: the file or flag that it came from, for errors.

        Raises:
            InvalidInput: the text is not JSON; a member is missing, unknown or of the wrong type; or members are
                inconsistent.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(where, f"not valid JSON: {error}", "a JSON object") from None
        if isinstance(value, dict):
            value = {"extra": {}, **value}
        world: World = _read(cls, _WORLD, value, where)
        _check(world, where)
        return world

    def service(self, namespace: str, name: str) -> Service | None:
        """Find a service."""
        return next((one for one in self.services if (one.namespace, one.name) == (namespace, name)), None)

    def pods_of(self, service: Service) -> tuple[LabPod, ...]:
        """List a service's pods, in the service's order."""
        pods = {(pod.namespace, pod.name): pod for pod in self.pods}
        return tuple(pods[service.namespace, name] for name in service.pods)

    def proxy(self, node: str) -> Proxy:
        """Identify a proxy.

        Args:
            node: its node ID, `role~address~id~domain`.
        """
        parts = node.split("~")
        if len(parts) != NODE_PARTS:
            return Proxy(None, DEFAULT_NAMESPACE)
        _, address, _, domain = parts
        pod = next((pod for pod in self.pods if address in pod.addresses), None)
        return Proxy(pod, pod.namespace if pod else domain.partition(".")[0])


def _check(world: World, where: str) -> None:
    _unique([(one.namespace, one.name) for one in world.services], f"{where}: services", "name in its namespace")
    _unique(
        [(address, one.port) for one in world.services for address in one.addresses],
        f"{where}: services",
        "address and port",
    )
    _unique([(one.namespace, one.name) for one in world.pods], f"{where}: pods", "name in its namespace")
    _unique([ip for one in world.pods for ip in one.addresses], f"{where}: pods", "address")
    for service in world.services:
        existing = {pod.name for pod in world.pods if pod.namespace == service.namespace}
        for name in service.pods:
            if name not in existing:
                problem = f"service {service.name!r} lists pod {name!r}, which is not in namespace {service.namespace!r}"
                raise InvalidInput(f"{where}: services", problem, ", ".join(sorted(existing)) or "pods listed in the world")
    for pod in world.pods:
        if pod.service and world.service(pod.namespace, pod.service) is None:
            problem = f"pod {pod.name!r} has service {pod.service!r}, which is not in namespace {pod.namespace!r}"
            raise InvalidInput(f"{where}: pods", problem, "a service listed in the world, or an empty string")


def _unique(values: list[Any], where: str, what: str) -> None:
    duplicates = [value for number, value in enumerate(values) if value in values[:number]]
    if duplicates:
        raise InvalidInput(where, f"{duplicates[0]!r} is a duplicate", f"each {what} only once")


def _read(kind: Callable[..., Any], readers: Mapping[str, Reader], value: object, where: str) -> Any:
    names = ", ".join(readers)
    if not isinstance(value, dict):
        raise InvalidInput(where, f"{value!r} is not an object", f"an object with {names}")
    for name in value:
        if name not in readers:
            raise InvalidInput(where, f"unknown member {name!r}", names)
    for name in readers:
        if name not in value:
            raise InvalidInput(where, f"missing member {name!r}", names)
    return kind(**{name: read(value[name], f"{where}: {name}") for name, read in readers.items()})


def _list(read: Reader) -> Reader:
    def read_list(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InvalidInput(where, f"{value!r} is not a list", "a list")
        return tuple(read(item, f"{where}[{number}]") for number, item in enumerate(value))

    return read_list


def _one_of(*allowed: str) -> Reader:
    def read_one(value: object, where: str) -> str:
        if value not in allowed:
            raise InvalidInput(where, f"{value!r} is not a valid value", ", ".join(allowed))
        return str(value)

    return read_one


def _object(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidInput(where, f"{value!r} is not an object", "an object")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(where, f"{value!r} is not a string", "a string")
    return value


def _name(value: object, where: str) -> str:
    text = _text(value, where)
    if not text or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in text):
        raise InvalidInput(where, f"{text!r} is not a valid name", "letters, digits, - and _")
    return text


def _address(value: object, where: str) -> str:
    text = _text(value, where)
    try:
        # Zone IDs (RFC 4007) are only meaningful on one machine.
        if "%" not in text:
            return str(ip_address(text))
    except ValueError:
        pass
    raise InvalidInput(where, f"{value!r} is not an IP address", "an IPv4 or IPv6 address")


def _addresses(value: object, where: str) -> tuple[str, ...]:
    addresses: tuple[str, ...] = _list(_address)(value, where)
    if not addresses or len(families_of(addresses)) < len(addresses):
        raise InvalidInput(where, f"{value!r} is not a valid list of addresses", "one address, or one per family")
    return addresses


def _port(value: object, where: str) -> int:
    # In Python, bool is a subclass of int.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= PORT_MAX:
        raise InvalidInput(where, f"{value!r} is not a port", f"1..{PORT_MAX}")
    return value


def _extra(value: object, where: str) -> Extra:
    if isinstance(value, dict):
        value = {name: [] for name in Extra._fields} | value
    extra: Extra = _read(Extra, {name: _list(_object) for name in Extra._fields}, value, where)
    return extra


def _service(value: object, where: str) -> Service:
    service: Service = _read(Service, _SERVICE, value, where)
    return service


def _pod(value: object, where: str) -> LabPod:
    pod: LabPod = _read(LabPod, _POD, value, where)
    return pod


if TYPE_CHECKING:
    Reader = Callable[[object, str], Any]  # takes a JSON value and its location

_SERVICE: Mapping[str, Reader] = {
    "name": _name,
    "namespace": _name,
    "addresses": _addresses,
    "port": _port,
    "pods": _list(_name),
}
_POD: Mapping[str, Reader] = {
    "name": _name,
    "namespace": _name,
    "addresses": _addresses,
    "mode": _one_of(*Mode),
    "port": _port,
    "service": _text,
}
_WORLD: Mapping[str, Reader] = {
    "shape": _one_of(*SHAPES),
    "services": _list(_service),
    "pods": _list(_pod),
    "extra": _extra,
}
