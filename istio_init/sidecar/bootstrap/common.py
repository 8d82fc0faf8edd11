"""The parts that both flavours of the bootstrap file share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.core.durations import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.sidecar.bootstrap.settings import HostPort, Node, ProxySettings

Json = dict[str, Any]

LOCALHOST = "127.0.0.1"
PROMETHEUS_PATH = "/stats/prometheus"
CERTIFICATES = "/etc/certs"

# Parts of Envoy's statistic names that become tags (Istio 1.0.5). The patterns are in Envoy's syntax: RE2, or std::regex for
# those with a look-ahead.
STATS_TAGS = {
    "cluster_name": r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)",
    "tcp_prefix": r"^tcp\.((.*?)\.)\w+?$",
    "response_code": r"_rq(_(\d{3}))$",
    "response_code_class": r"_rq(_(\dxx))$",
    "http_conn_manager_listener_prefix": (
        r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"
    ),
    "http_conn_manager_prefix": r"^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    "listener_address": r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
}


def node(proxy: Node) -> Json:
    """Render the identity of this proxy."""
    locality: Json = {"locality": {"zone": proxy.zone}} if proxy.zone else {}
    return {"id": proxy.name, "cluster": proxy.cluster, **locality, "metadata": proxy.metadata}


def stats_config() -> Json:
    """Render the rules that extract tags from statistic names."""
    tags = [{"tag_name": name, "regex": regex} for name, regex in STATS_TAGS.items()]
    return {"use_all_default_tags": False, "stats_tags": tags}


def address(host: str, port: int, protocol: str = "TCP") -> Json:
    """Render a socket address."""
    return {"socket_address": {"protocol": protocol, "address": host, "port_value": port}}


def wildcard_address(ip: str, port: int) -> Json:
    """Render the wildcard socket address of a pod.

    Args:
        ip: the pod's primary address; if it is IPv4, the pod may lack IPv6 altogether.
        port: the port.
    """
    if ":" not in ip:
        return address("0.0.0.0", port)  # noqa: S104 - clients connect from outside the pod
    both = address("::", port)
    return {"socket_address": {**both["socket_address"], "ipv4_compat": True}}


def address_of(target: HostPort, protocol: str = "TCP") -> Json:
    """Render the socket address of a host and port."""
    return address(target.host, target.port, protocol)


def clusters(
    settings: ProxySettings,
    make: Callable[[str, str, str, Json], Json],
    control_plane: Json,
) -> list[Json]:
    """List the static clusters.

    Args:
        settings: the proxy's settings.
        make: renders a cluster from its name, type, connect timeout and the address of its only endpoint.
        control_plane: additional members of the control plane's cluster.
    """
    made = [
        make("prometheus_stats", "STATIC", "0.250s", address(LOCALHOST, settings.admin_port)),
        make("xds-grpc", "STRICT_DNS", to_json(settings.connect_timeout), address_of(settings.xds)) | control_plane,
    ]
    if settings.zipkin:
        made.append(make("zipkin", "STRICT_DNS", "1s", address_of(settings.zipkin)))
    return made


def circuit_breakers() -> Json:
    """Set limits that the connection to the control plane never reaches."""
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100000)
    return {"thresholds": [{"priority": priority, **limits} for priority in ("DEFAULT", "HIGH")]}


def keepalive() -> Json:
    """Detect a dead control plane connection within minutes."""
    return {"tcp_keepalive": {"keepalive_time": 300}}


def tls_certificates() -> Json:
    """Reference the files of this proxy's certificate."""
    return {
        "certificate_chain": {"filename": f"{CERTIFICATES}/cert-chain.pem"},
        "private_key": {"filename": f"{CERTIFICATES}/key.pem"},
    }


def prometheus_route() -> Json:
    """Route the only public path to the admin port."""
    route = {"match": {"prefix": PROMETHEUS_PATH}, "route": {"cluster": "prometheus_stats"}}
    return {"virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [route]}]}
