"""A pod's listeners in either shape. Pure.

`istio-1.0`: `virtual` accepts every captured connection and hands it to the listener for its original destination, which
does not bind a port. `current`: `virtualOutbound` does so for outbound connections; `virtualInbound` accepts inbound ones
and has a filter chain per app port.

A dual-stack pod has listeners on the wildcard addresses of both families. Inbound connections are forwarded to the loopback
address of the same family, so that an app can see its client's address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.lab.world import SHAPE_CURRENT, families_of, family_of
from istio_init.rules.model import ENVOY_PORT, TPROXY_MARK, Family, Mode
from istio_init.sidecar.bootstrap.common import LOCALHOST, address

if TYPE_CHECKING:
    from istio_init.lab.world import Json, LabPod, Service, World

ANY = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - captured connections can have any destination
LOCALHOSTS = {Family.IPV4: LOCALHOST, Family.IPV6: "::1"}
ADDRESS_BITS = {Family.IPV4: 32, Family.IPV6: 128}
INBOUND_PORT = 15006
ADMIN_PORT = 15000  # the default of `istio-init proxy`
OWN_PORTS = (ADMIN_PORT, ENVOY_PORT, INBOUND_PORT)
PASSTHROUGH = "PassthroughCluster"
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"
BLACK_HOLE = "BlackHoleCluster"
INBOUND, OUTBOUND = "INBOUND", "OUTBOUND"

EXTENSIONS = "type.googleapis.com/envoy.extensions"
# Filter state that overrides the destination of an ORIGINAL_DST cluster (Envoy's docs, "Original destination").
DESTINATION_KEY = "envoy.network.transport_socket.original_dst_address"

# Field names of Istio's JSON access log.
LOGGED = {
    "start_time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "authority": "%REQ(:AUTHORITY)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "duration": "%DURATION%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_cluster": "%UPSTREAM_CLUSTER%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "route_name": "%ROUTE_NAME%",
}


def inbound_cluster(world: World, pod: LabPod, family: Family | None = None) -> str:
    """Return the name of the cluster for a pod's own app; empty for a pod without a service.

    Args:
        world: the world.
        pod: the app's pod.
        family: the family of the loopback address; part of the name unless it is the pod's first family or None.
    """
    service = world.service(pod.namespace, pod.service)
    if service is None:
        return ""
    subset = family if family in families_of(pod.addresses)[1:] else ""
    return (
        f"inbound|{pod.port}|{subset}|"
        if world.shape == SHAPE_CURRENT
        else f"inbound|{service.port}|{subset}|{service.host}"
    )


def outbound_cluster(service: Service) -> str:
    """Return the name of a service's cluster in its clients."""
    return f"outbound|{service.port}||{service.host}"


def route(name: str, cluster: str) -> Json:
    """Route all paths to a cluster, without timeout or retries."""
    return {"name": name, "match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}


def listeners(world: World, pod: LabPod | None) -> list[Json]:
    """List the listeners of a proxy.

    Args:
        world: the world.
        pod: the proxy's pod; without one, there are no inbound listeners.
    """
    current = world.shape == SHAPE_CURRENT
    families = families_of(pod.addresses if pod else (host for one in world.services for host in one.addresses))
    families = families or (Family.IPV4,)
    made = [_capture("virtualOutbound" if current else "virtual", pod, families, all_inbound=not current)]
    if pod and current:
        made.append(_virtual_inbound(world, pod))
    if pod and inbound_cluster(world, pod):
        made += [_app(world, pod, host) for host in pod.addresses]
    return made + [_outbound(families, port) for port in sorted({service.port for service in world.services})]


def _capture(name: str, pod: LabPod | None, families: tuple[Family, ...], *, all_inbound: bool) -> Json:
    """Build the listener to which connections are redirected, and which hands them to the other listeners.

    Unmatched connections are passed through to their original destination, except those to this pod itself, which iptables
    would redirect back here in an endless loop.
    """
    own = [_inbound_passthrough(name, family_of(host)) | _match(host) for host in pod.addresses] if pod else []
    transparent = {"transparent": True} if pod and pod.mode == Mode.TPROXY and all_inbound else {}
    return {
        "name": name,
        **_wildcard_addresses(families, ENVOY_PORT),
        "traffic_direction": OUTBOUND,
        "use_original_dst": True,
        "listener_filters": [_original_destination()],
        "filter_chains": [*_guards(name), *own],
        "default_filter_chain": {"name": PASSTHROUGH, "filters": [_tcp(PASSTHROUGH, name, OUTBOUND)]},
        **transparent,
    }


def _virtual_inbound(world: World, pod: LabPod) -> Json:
    """Build the listener for inbound connections.

    A filter chain without a destination matches both families, with the same specificity as `::/0`. Therefore, in a
    dual-stack pod each of the app's chains has a destination of its family.
    """
    name = "virtualInbound"
    families = families_of(pod.addresses)
    served = families if inbound_cluster(world, pod) else ()
    to = {family: ANY[family] if len(families) > 1 else "" for family in families}
    return {
        "name": name,
        **_wildcard_addresses(families, INBOUND_PORT),
        "traffic_direction": INBOUND,
        "listener_filters": [_original_destination(), *_original_source(pod)],
        "filter_chains": [
            *(_app_chain(world, pod, name, family) | _match(to[family], 0, pod.port) for family in served),
            *_guards(name),
            *(_inbound_passthrough(name, other) | _match(ANY[other], 0) for other in families[1:]),
        ],
        "default_filter_chain": _inbound_passthrough(name, families[0]),
        **({"transparent": True} if pod.mode == Mode.TPROXY else {}),
    }


def _app(world: World, pod: LabPod, host: str) -> Json:
    """Build the listener for connections to one of the pod's own addresses that arrive at port 15001.

    Istio 1.0's rules redirect a pod's calls to itself there, even with listeners of the current shape.
    """
    name = _listener_name(host, pod.port)
    return {
        "name": name,
        "address": address(host, pod.port),
        "bind_to_port": False,
        "traffic_direction": INBOUND,
        "listener_filters": _original_source(pod),
        "filter_chains": [_app_chain(world, pod, name, family_of(host))],
    }


def _app_chain(world: World, pod: LabPod, listener: str, family: Family) -> Json:
    cluster = inbound_cluster(world, pod, family)
    (own,) = (host for host in pod.addresses if family_of(host) is family)
    host = {"name": f"inbound|http|{pod.port}", "domains": ["*"], "routes": [route("default", cluster)]}
    routes = {"route_config": {"name": cluster, "virtual_hosts": [host], "validate_clusters": False}}
    return {"name": cluster, "filters": [_http(f"inbound_{_listener_name(own, pod.port)}", routes, listener, INBOUND)]}


def _outbound(families: tuple[Family, ...], port: int) -> Json:
    name = _listener_name(ANY[families[0]], port)
    routes = {"rds": {"route_config_name": str(port), "config_source": {"ads": {}, "resource_api_version": "V3"}}}
    return {
        "name": name,
        **_wildcard_addresses(families, port),
        "bind_to_port": False,
        "traffic_direction": OUTBOUND,
        "filter_chains": [{"filters": [_http(f"outbound_{name}", routes, name, OUTBOUND)]}],
    }


def _inbound_passthrough(listener: str, family: Family) -> Json:
    """Forward a connection to any port of the pod to the app.

    It is forwarded to the loopback address, which no layout captures; via the pod's address it would loop. As a side effect,
    ports bound to loopback only are reachable as well.
    """
    value = {"text_format_source": {"inline_string": f"{bracketed(LOCALHOSTS[family])}:%DOWNSTREAM_LOCAL_PORT%"}}
    state = _typed(
        "filters.network.set_filter_state.v3.Config",
        on_new_connection=[{"object_key": DESTINATION_KEY, "format_string": value}],
    )
    return {
        "name": f"{INBOUND_PASSTHROUGH}_{family}",
        "filters": [
            {"name": "envoy.filters.network.set_filter_state", "typed_config": state},
            _tcp(INBOUND_PASSTHROUGH, listener, INBOUND),
        ],
    }


def _guards(listener: str) -> list[Json]:
    """Close connections to Envoy's own ports, which would otherwise loop or expose the admin interface."""
    return [
        {
            "name": f"{BLACK_HOLE}_{port}",
            **_match(port=port),
            "filters": [_tcp(BLACK_HOLE, listener, INBOUND)],
        }
        for port in OWN_PORTS
    ]


def _match(host: str = "", bits: int | None = None, port: int = 0) -> Json:
    """Build a filter chain match on destination address and port, as far as given."""
    length = ADDRESS_BITS[family_of(host)] if bits is None else bits
    prefix = {"prefix_ranges": [{"address_prefix": host, "prefix_len": length}]} if host else {}
    return {"filter_chain_match": prefix | ({"destination_port": port} if port else {})}


def _wildcard_addresses(families: tuple[Family, ...], port: int) -> Json:
    """Bind a listener to the wildcard address of each family; in Envoy, `::` does not accept IPv4."""
    first, *others = (address(ANY[family], port) for family in families)
    return {"address": first} | ({"additional_addresses": [{"address": other} for other in others]} if others else {})


def bracketed(host: str) -> str:
    """Format an address for use before a port."""
    return f"[{host}]" if ":" in host else host


def _listener_name(host: str, port: int) -> str:
    return f"{bracketed(host)}_{port}"


def _original_destination() -> Json:
    config = _typed("filters.listener.original_dst.v3.OriginalDst")
    return {"name": "envoy.filters.listener.original_dst", "typed_config": config}


def _original_source(pod: LabPod) -> list[Json]:
    """With TPROXY, preserve the client's address; the mark routes the app's responses back to Envoy."""
    if pod.mode != Mode.TPROXY:
        return []
    config = _typed("filters.listener.original_src.v3.OriginalSrc", mark=TPROXY_MARK)
    return [{"name": "envoy.filters.listener.original_src", "typed_config": config}]


def _http(stat_prefix: str, routes: Json, listener: str, direction: str) -> Json:
    router = {"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")}
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        codec_type="AUTO",
        stat_prefix=stat_prefix,
        generate_request_id=True,
        use_remote_address=False,
        access_log=[_access_log(listener, direction)],
        http_filters=[router],
        **routes,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _tcp(cluster: str, listener: str, direction: str) -> Json:
    proxy = _typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=cluster,
        cluster=cluster,
        access_log=[_access_log(listener, direction)],
    )
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}


def _access_log(listener: str, direction: str) -> Json:
    """Log to Envoy's standard output; opening /dev/stdout can fail for Envoy's user if root opened it."""
    logged = {"direction": direction.lower(), "listener": listener, **LOGGED}
    log = _typed("access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": logged})
    return {"name": "envoy.access_loggers.stdout", "typed_config": log}


def _typed(type_name: str, **members: object) -> Json:
    return {"@type": f"{EXTENSIONS}.{type_name}", **members}
