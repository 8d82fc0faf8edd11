"""What the lab's control plane knows: services, pods, and in which shape it configures their proxies. Pure.

A world travels as one JSON file, which people and tests change while the lab runs.
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

ISTIO_1_0, CURRENT = "istio-1.0", "current"
SHAPES = (ISTIO_1_0, CURRENT)
DEFAULT_NAMESPACE = "default"
DOMAIN = "svc.cluster.local"
NODE_PARTS = 4  # role, address, id and domain


def family_of(address: str) -> Family:
    """Give the family of an address."""
    return Family.IPV6 if ":" in address else Family.IPV4


def families_of(addresses: Iterable[str]) -> tuple[Family, ...]:
    """List the families of addresses, each once, in the order in which they come."""
    return tuple(dict.fromkeys(map(family_of, addresses)))


class Service(NamedTuple):
    """Something that pods offer together.

    Attributes:
        name: without its namespace.
        namespace: the Kubernetes one.
        addresses: the virtual IPs, which no pod has: one of each family that it is to be had by.
        port: on those addresses.
        pods: the names of its pods, which are in the same namespace.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    port: int
    pods: tuple[str, ...]

    @property
    def host(self) -> str:
        """Its full domain name."""
        return f"{self.name}.{self.namespace}.{DOMAIN}"


class Pod(NamedTuple):
    """An app with a proxy in front.

    Attributes:
        name: unique in its namespace.
        namespace: the Kubernetes one.
        addresses: one of each family that it has; its proxy is known by any of them.
        mode: how inbound connections reach the proxy: REDIRECT or TPROXY.
        port: where the app listens.
        service: the one it belongs to, of the same namespace; empty for a pod that only calls others.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    mode: str
    port: int
    service: str


class Extra(NamedTuple):
    """Resources of a person's own, as JSON of Envoy's v3 API, which every proxy gets after its own."""

    listeners: tuple[Json, ...] = ()
    clusters: tuple[Json, ...] = ()
    endpoints: tuple[Json, ...] = ()
    routes: tuple[Json, ...] = ()


class Proxy(NamedTuple):
    """Who asks for configuration.

    Attributes:
        pod: the one that it stands in front of; None for an address that the world does not know.
        namespace: whose services it may call by their names alone.
    """

    pod: Pod | None
    namespace: str


class World(NamedTuple):
    """All that the control plane knows.

    Attributes:
        shape: one of `SHAPES`, see `istio_init.lab.listeners`.
    """

    shape: str
    services: tuple[Service, ...]
    pods: tuple[Pod, ...]
    extra: Extra = Extra()

    def to_json(self) -> str:
        """Write what `from_json` reads."""
        members = {
            "shape": self.shape,
            "services": [service._asdict() for service in self.services],
            "pods": [pod._asdict() for pod in self.pods],
            "extra": self.extra._asdict(),
        }
        return json.dumps(members, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> World:
        """Read a world.

        Args:
            text: JSON.
            where: the file or flag that it came from, for errors.

        Raises:
            InvalidInput: it is no JSON, a member is missing, unknown or of the wrong kind, or members contradict each other.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(where, f"this is no JSON: {error}", "one JSON object") from None
        if isinstance(value, dict):
            value = {"extra": {}, **value}
        world: World = _read(cls, _WORLD, value, where)
        _check(world, where)
        return world

    def service(self, namespace: str, name: str) -> Service | None:
        """Find a service."""
        return next((one for one in self.services if (one.namespace, one.name) == (namespace, name)), None)

    def pods_of(self, service: Service) -> tuple[Pod, ...]:
        """List a service's pods, in the order in which it names them."""
        pods = {(pod.namespace, pod.name): pod for pod in self.pods}
        return tuple(pods[service.namespace, name] for name in service.pods)

    def proxy(self, node: str) -> Proxy:
        """Find out who a proxy is.

        Args:
            node: its name among nodes, `role~address~id~domain`.
        """
        parts = node.split("~")
        if len(parts) != NODE_PARTS:
            return Proxy(None, DEFAULT_NAMESPACE)
        _, address, _, domain = parts
        pod = next((pod for pod in self.pods if address in pod.addresses), None)
        return Proxy(pod, pod.namespace if pod else domain.partition(".")[0])


def _check(world: World, where: str) -> None:
    _unique([(one.namespace, one.name) for one in world.services], f"{where}: services", "name in its namespace")
    _unique([(at, one.port) for one in world.services for at in one.addresses], f"{where}: services", "address and port")
    _unique([(one.namespace, one.name) for one in world.pods], f"{where}: pods", "name in its namespace")
    _unique([at for one in world.pods for at in one.addresses], f"{where}: pods", "address")
    for service in world.services:
        there = {pod.name for pod in world.pods if pod.namespace == service.namespace}
        for name in service.pods:
            if name not in there:
                problem = f"service {service.name!r} has the pod {name!r}, which is not in namespace {service.namespace!r}"
                raise InvalidInput(f"{where}: services", problem, ", ".join(sorted(there)) or "pods that are listed")
    for pod in world.pods:
        if pod.service and world.service(pod.namespace, pod.service) is None:
            problem = f"pod {pod.name!r} belongs to {pod.service!r}, which is no service of namespace {pod.namespace!r}"
            raise InvalidInput(f"{where}: pods", problem, "a service that is listed, or an empty text")


def _unique(values: list[Any], where: str, what: str) -> None:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise InvalidInput(where, f"{twice[0]!r} stands there twice", f"each {what} once")


def _read(kind: Callable[..., Any], readers: Mapping[str, Reader], value: object, where: str) -> Any:
    names = ", ".join(readers)
    if not isinstance(value, dict):
        raise InvalidInput(where, f"{value!r} is no object", f"an object with {names}")
    for name in value:
        if name not in readers:
            raise InvalidInput(where, f"there is no member {name!r}", names)
    for name in readers:
        if name not in value:
            raise InvalidInput(where, f"the member {name!r} is missing", names)
    return kind(**{name: read(value[name], f"{where}: {name}") for name, read in readers.items()})


def _list(read: Reader) -> Reader:
    def read_list(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise InvalidInput(where, f"{value!r} is no list", "a list")
        return tuple(read(item, f"{where}[{number}]") for number, item in enumerate(value))

    return read_list


def _one_of(*allowed: str) -> Reader:
    def read_one(value: object, where: str) -> str:
        if value not in allowed:
            raise InvalidInput(where, f"{value!r} is not possible", ", ".join(allowed))
        return str(value)

    return read_one


def _object(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidInput(where, f"{value!r} is no object", "an object")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(where, f"{value!r} is no text", "text")
    return value


def _name(value: object, where: str) -> str:
    text = _text(value, where)
    if not text or not all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in text):
        raise InvalidInput(where, f"{text!r} is no name", "letters, digits, - and _")
    return text


def _address(value: object, where: str) -> str:
    text = _text(value, where)
    try:
        # A zone (RFC 4007) means something on one machine only.
        if "%" not in text:
            return str(ip_address(text))
    except ValueError:
        pass
    raise InvalidInput(where, f"{value!r} is no address", "an IPv4 or IPv6 address")


def _addresses(value: object, where: str) -> tuple[str, ...]:
    addresses: tuple[str, ...] = _list(_address)(value, where)
    if not addresses or len(families_of(addresses)) < len(addresses):
        raise InvalidInput(where, f"{value!r} is not what a pod or service has", "one address, or one of each family")
    return addresses


def _port(value: object, where: str) -> int:
    # To Python, true is the number 1.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= PORT_MAX:
        raise InvalidInput(where, f"{value!r} is no port", f"1..{PORT_MAX}")
    return value


def _extra(value: object, where: str) -> Extra:
    if isinstance(value, dict):
        value = {name: [] for name in Extra._fields} | value
    extra: Extra = _read(Extra, {name: _list(_object) for name in Extra._fields}, value, where)
    return extra


def _service(value: object, where: str) -> Service:
    service: Service = _read(Service, _SERVICE, value, where)
    return service


def _pod(value: object, where: str) -> Pod:
    pod: Pod = _read(Pod, _POD, value, where)
    return pod


if TYPE_CHECKING:
    Reader = Callable[[object, str], Any]  # takes a JSON value and where it stands

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
