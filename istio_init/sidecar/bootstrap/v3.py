"""The bootstrap file for current Envoys: v3 API messages as JSON.

Source: Envoy's v3 API reference, `config.bootstrap.v3.Bootstrap`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.sidecar.bootstrap.common import (
    CERTIFICATES,
    LOCALHOST,
    Json,
    address,
    address_of,
    circuit_breakers,
    clusters,
    keepalive,
    node,
    prometheus_route,
    stats_config,
    tls_certificates,
    wildcard_address,
)
from istio_init.sidecar.bootstrap.settings import PROMETHEUS_PORT

if TYPE_CHECKING:
    from istio_init.sidecar.bootstrap.settings import ProxySettings

EXTENSIONS = "type.googleapis.com/envoy.extensions"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ADS = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}


def render(settings: ProxySettings) -> Json:
    """Render the bootstrap as data; deterministic."""
    return {
        "node": node(settings.node),
        "stats_config": stats_config(),
        "admin": _admin(settings),
        "dynamic_resources": _dynamic_resources(),
        "static_resources": {
            "clusters": clusters(settings, _cluster, _control_plane(settings)),
            "listeners": [_prometheus_listener(settings.node.ip)],
        },
        **(_tracing() if settings.zipkin else {}),
        **(_stats_sinks(settings) if settings.statsd else {}),
    }


def _typed(type_name: str, **members: object) -> Json:
    return {"@type": f"{EXTENSIONS}.{type_name}", **members}


def _admin(settings: ProxySettings) -> Json:
    log = _typed("access_loggers.file.v3.FileAccessLog", path="/dev/null")
    return {
        "access_log": [{"name": "envoy.access_loggers.file", "typed_config": log}],
        "address": address(LOCALHOST, settings.admin_port),
    }


def _dynamic_resources() -> Json:
    ads = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
    }
    return {"lds_config": ADS, "cds_config": ADS, "ads_config": ads}


def _cluster(name: str, discovery: str, connect_timeout: str, endpoint: Json) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}]
    return {
        "name": name,
        "type": discovery,
        "connect_timeout": connect_timeout,
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _control_plane(settings: ProxySettings) -> Json:
    http2 = _typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})
    return {
        **(_transport_socket(settings.control_plane_identity) if settings.control_plane_identity else {}),
        "circuit_breakers": circuit_breakers(),
        "upstream_connection_options": keepalive(),
        "typed_extension_protocol_options": {HTTP_OPTIONS: http2},
    }


def _transport_socket(identity: str) -> Json:
    context = {
        "alpn_protocols": ["h2"],
        "tls_certificates": [tls_certificates()],
        "validation_context": {
            "trusted_ca": {"filename": f"{CERTIFICATES}/root-cert.pem"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity}}],
        },
    }
    tls = _typed("transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=context)
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}}


def _prometheus_listener(ip: str) -> Json:
    router = {"name": "envoy.filters.http.router", "typed_config": _typed("filters.http.router.v3.Router")}
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        codec_type="AUTO",
        stat_prefix="stats",
        route_config=prometheus_route(),
        http_filters=[router],
    )
    http = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "prometheus_stats",
        "address": wildcard_address(ip, PROMETHEUS_PORT),
        "filter_chains": [{"filters": [http]}],
    }


def _tracing() -> Json:
    zipkin = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
        "collector_cluster": "zipkin",
        "collector_endpoint": "/api/v2/spans",
        "collector_endpoint_version": "HTTP_JSON",
    }
    return {"tracing": {"http": {"name": "envoy.tracers.zipkin", "typed_config": zipkin}}}


def _stats_sinks(settings: ProxySettings) -> Json:
    statsd = {
        "@type": "type.googleapis.com/envoy.config.metrics.v3.StatsdSink",
        "address": address_of(settings.statsd, "UDP") if settings.statsd else {},
    }
    return {"stats_sinks": [{"name": "envoy.stat_sinks.statsd", "typed_config": statsd}]}
