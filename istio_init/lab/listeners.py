"""A pod's listeners in either shape. Pure.

`istio-1.0`: `virtual` takes every captured connection and hands it to the listener of its original destination, which has no
socket of its own. `current`: `virtualOutbound` does so for outbound connections, and `virtualInbound` takes inbound ones and
has a filter chain for each port of the app.

A pod of both families has listeners on the wildcard addresses of both. What comes in by one goes on to the localhost of the
same, or else an app could not see its client's address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.lab.world import CURRENT, families_of, family_of
from istio_init.rules.model import ENVOY_PORT, TPROXY_MARK, Family, Mode
from istio_init.sidecar.bootstrap.common import LOCALHOST, address

if TYPE_CHECKING:
    from istio_init.lab.world import Json, Pod, Service, World

ANY = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104 - captured connections have any destination
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
# Where a cluster of type ORIGINAL_DST looks first (Envoy's docs, "Original destination").
DESTINATION_KEY = "envoy.network.transport_socket.original_dst_address"

# Named as Istio names them in its JSON access log.
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


def inbound_cluster(world: World, pod: Pod, family: Family | None = None) -> str:
    """Name the cluster that is a pod's own app; empty for a pod without a service.

    Args:
        world: what there is.
        pod: the one whose app it is.
        family: by which localhost the app is reached; the pod's first one, and None, are not named.
    """
    service = world.service(pod.namespace, pod.service)
    if service is None:
        return ""
    subset = family if family in families_of(pod.addresses)[1:] else ""
    return f"inbound|{pod.port}|{subset}|" if world.shape == CURRENT else f"inbound|{service.port}|{subset}|{service.host}"


def outbound_cluster(service: Service) -> str:
    """Name the cluster that is a service, as callers see it."""
    return f"outbound|{service.port}||{service.host}"


def route(name: str, cluster: str) -> Json:
    """Route every path to a cluster, for as long as an answer takes, and without a second try."""
    return {"name": name, "match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}


def listeners(world: World, pod: Pod | None) -> list[Json]:
    """List the listeners of a proxy.

    Args:
        world: what there is to be called.
        pod: the proxy's own; without one, nothing is inbound.
    """
    current = world.shape == CURRENT
    families = families_of(pod.addresses if pod else (at for one in world.services for at in one.addresses))
    families = families or (Family.IPV4,)
    made = [_capture("virtualOutbound" if current else "virtual", pod, families, all_inbound=not current)]
    if pod and current:
        made.append(_virtual_inbound(world, pod))
    if pod and inbound_cluster(world, pod):
        made += [_app(world, pod, host) for host in pod.addresses]
    return made + [_outbound(families, port) for port in sorted({service.port for service in world.services})]


def _capture(name: str, pod: Pod | None, families: tuple[Family, ...], *, all_inbound: bool) -> Json:
    """Make the listener to which connections are redirected, and which hands them on.

    What it hands to nobody goes on to where it was bound for; were that this pod, iptables would send it back here for ever.
    """
    own = [_inbound_passthrough(name, family_of(host)) | _match(host) for host in pod.addresses] if pod else []
    transparent = {"transparent": True} if pod and pod.mode == Mode.TPROXY and all_inbound else {}
    return {
        "name": name,
        **_everywhere(families, ENVOY_PORT),
        "traffic_direction": OUTBOUND,
        "use_original_dst": True,
        "listener_filters": [_original_destination()],
        "filter_chains": [*_guards(name), *own],
        "default_filter_chain": {"name": PASSTHROUGH, "filters": [_tcp(PASSTHROUGH, name, OUTBOUND)]},
        **transparent,
    }


def _virtual_inbound(world: World, pod: Pod) -> Json:
    """Make the listener for inbound connections.

    A chain that names no destination is for any of both families, and as good a match as one for `::/0`; so where there are
    two families, each chain for the app names its own.
    """
    name = "virtualInbound"
    families = families_of(pod.addresses)
    served = families if inbound_cluster(world, pod) else ()
    to = {family: ANY[family] if len(families) > 1 else "" for family in families}
    return {
        "name": name,
        **_everywhere(families, INBOUND_PORT),
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


def _app(world: World, pod: Pod, host: str) -> Json:
    """Make the listener for connections to an address of the pod's own that came to port 15001.

    Rules of Istio 1.0 send a pod that calls itself there, in the current shape, too.
    """
    name = _place(host, pod.port)
    return {
        "name": name,
        "address": address(host, pod.port),
        "bind_to_port": False,
        "traffic_direction": INBOUND,
        "listener_filters": _original_source(pod),
        "filter_chains": [_app_chain(world, pod, name, family_of(host))],
    }


def _app_chain(world: World, pod: Pod, listener: str, family: Family) -> Json:
    cluster = inbound_cluster(world, pod, family)
    (own,) = (host for host in pod.addresses if family_of(host) is family)
    host = {"name": f"inbound|http|{pod.port}", "domains": ["*"], "routes": [route("default", cluster)]}
    routes = {"route_config": {"name": cluster, "virtual_hosts": [host], "validate_clusters": False}}
    return {"name": cluster, "filters": [_http(f"inbound_{_place(own, pod.port)}", routes, listener, INBOUND)]}


def _outbound(families: tuple[Family, ...], port: int) -> Json:
    name = _place(ANY[families[0]], port)
    routes = {"rds": {"route_config_name": str(port), "config_source": {"ads": {}, "resource_api_version": "V3"}}}
    return {
        "name": name,
        **_everywhere(families, port),
        "bind_to_port": False,
        "traffic_direction": OUTBOUND,
        "filter_chains": [{"filters": [_http(f"outbound_{name}", routes, name, OUTBOUND)]}],
    }


def _inbound_passthrough(listener: str, family: Family) -> Json:
    """Bring a connection to any port of the pod to the app.

    It goes to localhost, which no layout of rules captures; by the pod's address it would come back. So a port that is open
    on localhost only can be reached, too.
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
    """Close connections to Envoy's own ports: passed on, they would come back for ever, or reach its administration."""
    return [
        {
            "name": f"{BLACK_HOLE}_{port}",
            **_match(port=port),
            "filters": [_tcp(BLACK_HOLE, listener, INBOUND)],
        }
        for port in OWN_PORTS
    ]


def _match(host: str = "", bits: int | None = None, port: int = 0) -> Json:
    """Say which connections a filter chain is for: by their destination, and its port, as far as they are given."""
    length = ADDRESS_BITS[family_of(host)] if bits is None else bits
    prefix = {"prefix_ranges": [{"address_prefix": host, "prefix_len": length}]} if host else {}
    return {"filter_chain_match": prefix | ({"destination_port": port} if port else {})}


def _everywhere(families: tuple[Family, ...], port: int) -> Json:
    """Place a listener on the wildcard address of each family; Envoy's `::` takes no connections of IPv4."""
    first, *others = (address(ANY[family], port) for family in families)
    return {"address": first} | ({"additional_addresses": [{"address": other} for other in others]} if others else {})


def bracketed(host: str) -> str:
    """Write an address as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _place(host: str, port: int) -> str:
    return f"{bracketed(host)}_{port}"


def _original_destination() -> Json:
    config = _typed("filters.listener.original_dst.v3.OriginalDst")
    return {"name": "envoy.filters.listener.original_dst", "typed_config": config}


def _original_source(pod: Pod) -> list[Json]:
    """With TPROXY, let the app see its client's own address; by the mark, answers find the way back to Envoy."""
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
    """Log to Envoy's own standard output; the file /dev/stdout can be closed to Envoy's user, if root opened it."""
    logged = {"direction": direction.lower(), "listener": listener, **LOGGED}
    log = _typed("access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": logged})
    return {"name": "envoy.access_loggers.stdout", "typed_config": log}


def _typed(type_name: str, **members: object) -> Json:
    return {"@type": f"{EXTENSIONS}.{type_name}", **members}
