"""World and proxy → the resources of Envoy's v3 API that the proxy gets, as JSON. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from istio_init.lab.listeners import (
    BLACK_HOLE,
    INBOUND_PASSTHROUGH,
    LOCALHOSTS,
    PASSTHROUGH,
    bracketed,
    inbound_cluster,
    listeners,
    outbound_cluster,
    route,
)
from istio_init.lab.world import CURRENT, families_of
from istio_init.rules.model import Family, Mode
from istio_init.sidecar.bootstrap.common import address

if TYPE_CHECKING:
    from istio_init.lab.world import Json, Pod, Proxy, Service, World

CONNECT_TIMEOUT = "1s"  # Istio 1.0's default of `connectTimeout`
# An app of today's mesh knows by these sources that a connection comes from its own proxy.
INBOUND_SOURCES = {Family.IPV4: "127.0.0.6", Family.IPV6: "::6"}


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
        families = families_of(pod.addresses)
        made.append(_original_destination(INBOUND_PASSTHROUGH) | _inbound_source(world, pod, families))
        served = families if inbound_cluster(world, pod) else ()
        made += [_inbound(world, pod, family) | _inbound_source(world, pod, (family,)) for family in served]
    return made


def _inbound_source(world: World, pod: Pod, families: tuple[Family, ...]) -> Json:
    """Set the source of connections to the app; with TPROXY that is the client's own, which no cluster may overrule."""
    if world.shape != CURRENT or pod.mode == Mode.TPROXY:
        return {}
    first, *others = ({"address": INBOUND_SOURCES[family], "port_value": 0} for family in families)
    more = {"extra_source_addresses": [{"address": other} for other in others]} if others else {}
    return {"upstream_bind_config": {"source_address": first, **more}}


def _original_destination(name: str) -> Json:
    return {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": CONNECT_TIMEOUT}


def _inbound(world: World, pod: Pod, family: Family) -> Json:
    name = inbound_cluster(world, pod, family)
    endpoint = _endpoint((LOCALHOSTS[family],), pod.port)
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _outbound(service: Service) -> Json:
    return {
        "name": outbound_cluster(service),
        "type": "EDS",
        "connect_timeout": CONNECT_TIMEOUT,
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
    }


def _endpoints(world: World, service: Service) -> Json:
    group = {"lb_endpoints": [_endpoint(pod.addresses, pod.port) for pod in world.pods_of(service)]}
    return {"cluster_name": outbound_cluster(service), "endpoints": [group]}


def _endpoint(hosts: tuple[str, ...], port: int) -> Json:
    """Write one place that has one address, or several: which one is taken, Envoy finds out (RFC 8305)."""
    first, *others = (address(host, port) for host in hosts)
    more = {"additional_addresses": [{"address": other} for other in others]} if others else {}
    return {"endpoint": {"address": first, **more}}


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
    names = [service.host, f"{longer}.svc", longer, *map(bracketed, service.addresses)]
    if service.namespace == namespace:
        names.append(service.name)
    return {
        "name": f"{service.host}:{service.port}",
        "domains": [text for name in names for text in (name, f"{name}:{service.port}")],
        "routes": [route("default", outbound_cluster(service))],
    }
