"""Whether the two halves of a pod fit together: the rules that divert connections, and the proxy that they go to. Pure.

Each half can be right by itself and the pod still be broken, and neither of them can notice at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import shorten
from istio_init.rules.model import DNS_PORT, ENVOY_PORT, HEALTH_PORT, INBOUND_PORT, PROXY_UID, READINESS_PORT
from istio_init.rules.values import ALL
from istio_init.sidecar.bootstrap.settings import ADMIN_PORT, PROMETHEUS_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.settings import Settings
    from istio_init.sidecar.bootstrap.settings import ProxySettings

# What a mesh has on ports of its own, of Istio 1.0 or of today (istio.io, "Application Requirements"). An app leaves all of
# them alone, those too that this proxy does not open: the next version of the mesh may.
MESH_PORTS = {
    ADMIN_PORT: "Envoy's administration",
    ENVOY_PORT: "the outbound listener",
    INBOUND_PORT: "the inbound listener",
    HEALTH_PORT: "health and merged metrics",
    READINESS_PORT: "readiness",
    DNS_PORT: "DNS",
    PROMETHEUS_PORT: "metrics for Prometheus",
}


class Pair(NamedTuple):
    """Both halves of one pod.

    Attributes:
        rules: the settings of the interception.
        proxy: the settings of the proxy.
        listeners: ports of the listeners that the bootstrap file itself has; see `listener_ports`.
        run_as_uid: the user that Envoy runs as.
        run_as_gid: the group that it runs as, or None where nobody said.
        container_ports: the name of a container of the app, and a TCP port that it declares.
    """

    rules: Settings
    proxy: ProxySettings
    listeners: frozenset[int] = frozenset()
    run_as_uid: int = PROXY_UID
    run_as_gid: int | None = None
    container_ports: tuple[tuple[str, int], ...] = ()


def contradictions(pair: Pair) -> tuple[str, ...]:
    """Say in one line each what one half does and the other does not expect; nothing where both agree."""
    return (*_redirections(pair), *_owner(pair), *_mode(pair), *_app_ports(pair))


def listener_ports(bootstrap: Any) -> frozenset[int]:
    """Give the ports of the static listeners of a bootstrap file; of what is no bootstrap, none.

    Args:
        bootstrap: the file as data, its names written as in `istio_init.sidecar.bootstrap` (`port_value`, not `portValue`).
    """
    listeners = _member(bootstrap, "static_resources", "listeners")
    ports = [_member(one, "address", "socket_address", "port_value") for one in listeners or () if isinstance(one, dict)]
    return frozenset(port for port in ports if isinstance(port, int))


def _member(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _redirections(pair: Pair) -> Iterator[str]:
    """Compare where the rules send connections with where Envoy takes them."""
    outbound, inbound = pair.rules.envoy_port, pair.rules.inbound_capture_port
    yield from _redirection(pair, "-p", outbound, "outbound", (ENVOY_PORT,))
    # One port for both is right for both or told already: each port that is right for outbound is right for inbound.
    if inbound != outbound:
        yield from _redirection(pair, "-z", inbound, "inbound", (ENVOY_PORT, INBOUND_PORT))


def _redirection(pair: Pair, flag: str, port: int, direction: str, expected: tuple[int, ...]) -> Iterator[str]:
    others = _other_ports(pair.proxy)
    listener = f"the listener of {direction} connections is on port {' or '.join(map(str, expected))}"
    if port in others:
        yield f"{flag} is {port}, the port of {others[port]}; {listener}"
    elif port not in expected and port not in pair.listeners:
        yield f"{flag} is {port}, but {listener}"


def _other_ports(proxy: ProxySettings) -> dict[int, str]:
    """Say what the proxy has on ports that take no diverted connections."""
    status = {proxy.status_port: "readiness (--statusPort)"} if proxy.status_port else {}
    return {
        **status,
        PROMETHEUS_PORT: MESH_PORTS[PROMETHEUS_PORT],
        proxy.admin_port: f"{MESH_PORTS[ADMIN_PORT]} (--proxyAdminPort)",
    }


def _owner(pair: Pair) -> Iterator[str]:
    rules = pair.rules
    if pair.run_as_uid not in rules.proxy_uids and pair.run_as_gid not in rules.proxy_gids:
        uids = ",".join(map(str, rules.proxy_uids))
        yield f"-u is {uids}, but Envoy runs as uid {pair.run_as_uid}: its own connections would come back to it for ever"


def _mode(pair: Pair) -> Iterator[str]:
    told = pair.proxy.node.metadata.get("INTERCEPTION_MODE")
    if told and told != pair.rules.mode:
        yield f"-m is {pair.rules.mode}, but ISTIO_META_INTERCEPTION_MODE tells the control plane {told}"


def _app_ports(pair: Pair) -> Iterator[str]:
    """Compare the ports that are said to be the app's with those that are the mesh's."""
    own = {
        pair.rules.inbound_capture_port: f"{MESH_PORTS[INBOUND_PORT]} (-z)",
        pair.rules.envoy_port: f"{MESH_PORTS[ENVOY_PORT]} (-p)",
        **_other_ports(pair.proxy),
        **({} if pair.rules.dns_port == DNS_PORT else {pair.rules.dns_port: f"{MESH_PORTS[DNS_PORT]} (--dns-port)"}),
    }
    used = {**own, **MESH_PORTS}
    for claim, first, last in _claims(pair):
        taken = [f"{port} is {used[port]}" for port in sorted(used) if first <= port <= last]
        if taken:
            yield f"{claim}: an app cannot have ports of the mesh: {', '.join(taken)}"


def _claims(pair: Pair) -> Iterator[tuple[str, int, int]]:
    """Give where the pod says which ports are the app's, and the first and the last of them."""
    for item in pair.rules.inbound_ports:
        if item != ALL:
            first, _, last = item.partition(":")
            yield f"-b {item}", int(first), int(last or first)
    for port in pair.proxy.application_ports:
        yield f"--applicationPorts {port}", port, port
    for name, port in pair.container_ports:
        yield f"containerPort {port} of container {shorten(name)!r}", port, port
