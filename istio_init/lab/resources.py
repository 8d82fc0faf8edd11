"""World and proxy → the resources of Envoy's v3 API that the proxy gets, as JSON. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from istio_init.bootstrap.common import LOCALHOST, address
from istio_init.lab.listeners import (
    BLACK_HOLE,
    INBOUND_PASSTHROUGH,
    PASSTHROUGH,
    inbound_cluster,
    listeners,
    outbound_cluster,
    route,
)
from istio_init.lab.world import CURRENT
from istio_init.model import Mode

if TYPE_CHECKING:
    from istio_init.lab.world import Json, Pod, Proxy, Service, World

CONNECT_TIMEOUT = "1s"  # Istio 1.0's default of `connectTimeout`
# An app of today's mesh knows by this source that a connection comes from its own proxy.
INBOUND_SOURCE = "127.0.0.6"


class Kind(StrEnum):
    """A kind of resource, in the order in which a proxy must learn of them.

    Source: Envoy's "xDS REST and gRPC protocol", "Eventual consistency considerations".
    """

    CDS = "CDS"
    EDS = "EDS"
    LDS = "LDS"
    RDS = "RDS"

    @property
    def type_url(self) -> str:
        """The protobuf type of its resources."""
        return f"type.googleapis.com/{_MESSAGES[self]}"

    @property
    def by_name(self) -> bool:
        """Whether a proxy asks for those that it names, and not for all that there are."""
        return self in (Kind.EDS, Kind.RDS)

    def name_of(self, resource: Json) -> str:
        """The name that a proxy knows a resource by; empty where it has none."""
        return str(resource.get("cluster_name" if self is Kind.EDS else "name", ""))


_MESSAGES = {
    Kind.CDS: "envoy.config.cluster.v3.Cluster",
    Kind.EDS: "envoy.config.endpoint.v3.ClusterLoadAssignment",
    Kind.LDS: "envoy.config.listener.v3.Listener",
    Kind.RDS: "envoy.config.route.v3.RouteConfiguration",
}


def resources(world: World, proxy: Proxy) -> dict[Kind, list[Json]]:
    """List all that a proxy can get; the same world always gives the same.

    Args:
        world: what there is.
        proxy: one without a pod gets what is outbound only.
    """
    return {
        Kind.CDS: [*_clusters(world, proxy.pod), *world.extra.clusters],
        Kind.EDS: [*(_endpoints(world, service) for service in world.services), *world.extra.endpoints],
        Kind.LDS: [*listeners(world, proxy.pod), *world.extra.listeners],
        Kind.RDS: [*_routes(world, proxy.namespace), *world.extra.routes],
    }


def _clusters(world: World, pod: Pod | None) -> list[Json]:
    made = [
        _original_destination(PASSTHROUGH),
        {"name": BLACK_HOLE, "type": "STATIC", "connect_timeout": CONNECT_TIMEOUT},
        *(_outbound(service) for service in world.services),
    ]
    if pod:
        source = _inbound_source(world, pod)
        made.append(_original_destination(INBOUND_PASSTHROUGH) | source)
        name = inbound_cluster(world, pod)
        if name:
            made.append(_inbound(name, pod) | source)
    return made


def _inbound_source(world: World, pod: Pod) -> Json:
    """Set the source of connections to the app; with TPROXY that is the client's own, which no cluster may overrule."""
    if world.shape != CURRENT or pod.mode == Mode.TPROXY:
        return {}
    return {"upstream_bind_config": {"source_address": {"address": INBOUND_SOURCE, "port_value": 0}}}


def _original_destination(name: str) -> Json:
    return {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": CONNECT_TIMEOUT}


def _inbound(name: str, pod: Pod) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": {"cluster_name": name, "endpoints": [_group([(LOCALHOST, pod.port)])]},
    }


def _outbound(service: Service) -> Json:
    return {
        "name": outbound_cluster(service),
        "type": "EDS",
        "connect_timeout": CONNECT_TIMEOUT,
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
    }


def _endpoints(world: World, service: Service) -> Json:
    places = [(pod.address, pod.port) for pod in world.pods_of(service)]
    return {"cluster_name": outbound_cluster(service), "endpoints": [_group(places)]}


def _group(places: list[tuple[str, int]]) -> Json:
    return {"lb_endpoints": [{"endpoint": {"address": address(host, port)}} for host, port in places]}


def _routes(world: World, namespace: str) -> list[Json]:
    """Make a route configuration for each port; what no service claims goes where the client wanted."""
    made = []
    for port in sorted({service.port for service in world.services}):
        known = [_virtual_host(service, namespace) for service in world.services if service.port == port]
        rest = {"name": "allow_any", "domains": ["*"], "routes": [route("allow_any", PASSTHROUGH)]}
        made.append({"name": str(port), "virtual_hosts": [*known, rest], "validate_clusters": False})
    return made


def _virtual_host(service: Service, namespace: str) -> Json:
    """List the names by which an app may call a service; its name alone only within its namespace, as with cluster DNS."""
    longer = f"{service.name}.{service.namespace}"
    names = [service.host, f"{longer}.svc", longer, service.address]
    if service.namespace == namespace:
        names.append(service.name)
    return {
        "name": f"{service.host}:{service.port}",
        "domains": [text for name in names for text in (name, f"{name}:{service.port}")],
        "routes": [route("default", outbound_cluster(service))],
    }
