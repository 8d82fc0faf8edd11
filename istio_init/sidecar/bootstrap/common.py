"""What both flavours of the bootstrap file say in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.sidecar.bootstrap.durations import to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.sidecar.bootstrap.settings import HostPort, Node, ProxySettings

Json = dict[str, Any]

LOCALHOST = "127.0.0.1"
PROMETHEUS_PATH = "/stats/prometheus"
CERTIFICATES = "/etc/certs"

# Parts of the names of Envoy's statistics that become tags (Istio 1.0.5). The patterns are Envoy's own syntax (RE2, and for
# those with a look-ahead std::regex).
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


def node(who: Node) -> Json:
    """Say who this proxy is."""
    locality: Json = {"locality": {"zone": who.zone}} if who.zone else {}
    return {"id": who.name, "cluster": who.cluster, **locality, "metadata": who.metadata}


def stats_config() -> Json:
    """Say which parts of statistics' names are tags."""
    tags = [{"tag_name": name, "regex": regex} for name, regex in STATS_TAGS.items()]
    return {"use_all_default_tags": False, "stats_tags": tags}


def address(host: str, port: int, protocol: str = "TCP") -> Json:
    """Write a socket address."""
    return {"socket_address": {"protocol": protocol, "address": host, "port_value": port}}


def everywhere(ip: str, port: int) -> Json:
    """Write the socket address that a pod listens on for any address of its own.

    Args:
        ip: the pod's address; one that is known by an address of IPv4 need not have IPv6 at all.
        port: the port.
    """
    if ":" not in ip:
        return address("0.0.0.0", port)  # noqa: S104 - those who connect come from outside the pod
    both = address("::", port)
    return {"socket_address": {**both["socket_address"], "ipv4_compat": True}}


def address_of(place: HostPort, protocol: str = "TCP") -> Json:
    """Write the socket address of a host and port."""
    return address(place.host, place.port, protocol)


def clusters(
    settings: ProxySettings,
    make: Callable[[str, str, str, Json], Json],
    control_plane: Json,
) -> list[Json]:
    """List what Envoy knows before its control plane tells it more.

    Args:
        settings: the proxy's.
        make: writes a cluster from its name, type, connect timeout and the address of its only endpoint.
        control_plane: what the cluster of the control plane has besides.
    """
    made = [
        make("prometheus_stats", "STATIC", "0.250s", address(LOCALHOST, settings.admin_port)),
        make("xds-grpc", "STRICT_DNS", to_json(settings.connect_timeout), address_of(settings.xds)) | control_plane,
    ]
    if settings.zipkin:
        made.append(make("zipkin", "STRICT_DNS", "1s", address_of(settings.zipkin)))
    return made


def circuit_breakers() -> Json:
    """Set limits that the control plane's own connection never meets."""
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100000)
    return {"thresholds": [{"priority": priority, **limits} for priority in ("DEFAULT", "HIGH")]}


def keepalive() -> Json:
    """Notice within minutes when the control plane has gone without a word."""
    return {"tcp_keepalive": {"keepalive_time": 300}}


def tls_certificates() -> Json:
    """Name the files of this proxy's own certificate."""
    return {
        "certificate_chain": {"filename": f"{CERTIFICATES}/cert-chain.pem"},
        "private_key": {"filename": f"{CERTIFICATES}/key.pem"},
    }


def prometheus_route() -> Json:
    """Route the one path that anybody may read to the administration port."""
    route = {"match": {"prefix": PROMETHEUS_PATH}, "route": {"cluster": "prometheus_stats"}}
    return {"virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [route]}]}
