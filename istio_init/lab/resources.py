"""Generates a proxy's resources from the world, as JSON of Envoy's v3 API. Pure."""

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
from istio_init.lab.world import SHAPE_CURRENT, families_of
from istio_init.rules.model import Family, Mode
from istio_init.sidecar.bootstrap.common import address

if TYPE_CHECKING:
    from istio_init.lab.world import Json, LabPod, Proxy, Service, World

CONNECT_TIMEOUT = "1s"  # Istio 1.0's default for `connectTimeout`
# The source addresses of connections from a current proxy to its app.
INBOUND_SOURCES = {Family.IPV4: "127.0.0.6", Family.IPV6: "::6"}


class Kind(StrEnum):
    """The types of resources, in the order in which they must be pushed.

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
        """Whether a proxy subscribes to resources by name, instead of to all of them."""
        return self in (Kind.EDS, Kind.RDS)

    def name_of(self, resource: Json) -> str:
        """Return the name of a resource; empty if it has none."""
        return str(resource.get("cluster_name" if self is Kind.EDS else "name", ""))


_MESSAGES = {
    Kind.CDS: "envoy.config.cluster.v3.Cluster",
    Kind.EDS: "envoy.config.endpoint.v3.ClusterLoadAssignment",
    Kind.LDS: "envoy.config.listener.v3.Listener",
    Kind.RDS: "envoy.config.route.v3.RouteConfiguration",
}


def resources(world: World, proxy: Proxy) -> dict[Kind, list[Json]]:
    """List all resources of a proxy; deterministic.

    Args:
        world: the world.
        proxy: the proxy; without a pod, it only gets outbound resources.
    """
    return {
        Kind.CDS: [*_clusters(world, proxy.pod), *world.extra.clusters],
        Kind.EDS: [*(_endpoints(world, service) for service in world.services), *world.extra.endpoints],
        Kind.LDS: [*listeners(world, proxy.pod), *world.extra.listeners],
        Kind.RDS: [*_routes(world, proxy.namespace), *world.extra.routes],
    }


def _clusters(world: World, pod: LabPod | None) -> list[Json]:
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


def _inbound_source(world: World, pod: LabPod, families: tuple[Family, ...]) -> Json:
    """Set the source address of connections to the app, except with TPROXY, where it is the client's."""
    if world.shape != SHAPE_CURRENT or pod.mode == Mode.TPROXY:
        return {}
    first, *others = ({"address": INBOUND_SOURCES[family], "port_value": 0} for family in families)
    more = {"extra_source_addresses": [{"address": other} for other in others]} if others else {}
    return {"upstream_bind_config": {"source_address": first, **more}}


def _original_destination(name: str) -> Json:
    return {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": CONNECT_TIMEOUT}


def _inbound(world: World, pod: LabPod, family: Family) -> Json:
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
    """Build an endpoint with one or several addresses, of which Envoy chooses by Happy Eyeballs (RFC 8305)."""
    first, *others = (address(host, port) for host in hosts)
    more = {"additional_addresses": [{"address": other} for other in others]} if others else {}
    return {"endpoint": {"address": first, **more}}


def _routes(world: World, namespace: str) -> list[Json]:
    """Build a route configuration for each port; requests for unknown hosts go to their original destination."""
    made = []
    for port in sorted({service.port for service in world.services}):
        known = [_virtual_host(service, namespace) for service in world.services if service.port == port]
        rest = {"name": "allow_any", "domains": ["*"], "routes": [route("allow_any", PASSTHROUGH)]}
        made.append({"name": str(port), "virtual_hosts": [*known, rest], "validate_clusters": False})
    return made


def _virtual_host(service: Service, namespace: str) -> Json:
    """Build a service's virtual host with all its names; as in cluster DNS, the bare name is only valid in its namespace."""
    longer = f"{service.name}.{service.namespace}"
    names = [service.host, f"{longer}.svc", longer, *map(bracketed, service.addresses)]
    if service.namespace == namespace:
        names.append(service.name)
    return {
        "name": f"{service.host}:{service.port}",
        "domains": [text for name in names for text in (name, f"{name}:{service.port}")],
        "routes": [route("default", outbound_cluster(service))],
    }
