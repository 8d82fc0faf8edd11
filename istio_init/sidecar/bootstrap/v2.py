"""The bootstrap file for Istio 1.0's Envoy: v2 API messages as JSON.

Source: Istio 1.0.5, `tools/deb/envoy_bootstrap_v2.json`, with its bugs fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.core.durations import to_json
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


def render(settings: ProxySettings) -> Json:
    """Render the bootstrap as data; deterministic."""
    ads = {
        "api_type": "GRPC",
        "refresh_delay": to_json(settings.refresh_delay),
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
    }
    return {
        "node": node(settings.node),
        "stats_config": stats_config(),
        "admin": {"access_log_path": "/dev/null", "address": address(LOCALHOST, settings.admin_port)},
        "dynamic_resources": {"lds_config": {"ads": {}}, "cds_config": {"ads": {}}, "ads_config": ads},
        "static_resources": {
            "clusters": clusters(settings, _cluster, _control_plane(settings)),
            "listeners": [_prometheus_listener(settings.node.ip)],
        },
        **(_tracing() if settings.zipkin else {}),
        **(_stats_sinks(settings) if settings.statsd else {}),
    }


def _cluster(name: str, discovery: str, connect_timeout: str, host: Json) -> Json:
    return {
        "name": name,
        "type": discovery,
        "connect_timeout": connect_timeout,
        "lb_policy": "ROUND_ROBIN",
        "hosts": [host],
    }


def _control_plane(settings: ProxySettings) -> Json:
    return {
        **(_tls_context(settings.control_plane_identity) if settings.control_plane_identity else {}),
        "circuit_breakers": circuit_breakers(),
        "upstream_connection_options": keepalive(),
        "http2_protocol_options": {},
    }


def _tls_context(identity: str) -> Json:
    context = {
        "alpn_protocols": ["h2"],
        "tls_certificates": [tls_certificates()],
        "validation_context": {
            "trusted_ca": {"filename": f"{CERTIFICATES}/root-cert.pem"},
            "verify_subject_alt_name": [identity],
        },
    }
    return {"tls_context": {"common_tls_context": context}}


def _prometheus_listener(ip: str) -> Json:
    manager = {
        "codec_type": "AUTO",
        "stat_prefix": "stats",
        "route_config": prometheus_route(),
        "http_filters": [{"name": "envoy.router"}],
    }
    return {
        "name": "prometheus_stats",
        "address": wildcard_address(ip, PROMETHEUS_PORT),
        "filter_chains": [{"filters": [{"name": "envoy.http_connection_manager", "config": manager}]}],
    }


def _tracing() -> Json:
    return {"tracing": {"http": {"name": "envoy.zipkin", "config": {"collector_cluster": "zipkin"}}}}


def _stats_sinks(settings: ProxySettings) -> Json:
    statsd = {"address": address_of(settings.statsd, "UDP") if settings.statsd else {}}
    return {"stats_sinks": [{"name": "envoy.statsd", "config": statsd}]}
