"""The sidecar in the shape of current Istio's pods, with the arguments of this program's proxy. Pure.

Sources: pods injected by Istio in 2026; istio.io, "Resource Labels" and "Resource Annotations".
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from istio_init.kubernetes.inject.pod import Additions, compact, field, proxy_user, readiness_probe, variable
from istio_init.kubernetes.inject.settings import OWN_FLAGS
from istio_init.kubernetes.manifest import INIT, PROXY
from istio_init.rules.commands import IPTABLES_COMMAND
from istio_init.rules.model import ENVOY_PORT, HEALTH_PORT, INBOUND_PORT, PROXY_UID, READINESS_PORT, Mode
from istio_init.rules.values import ALL
from istio_init.sidecar.bootstrap.settings import ADMIN_PORT, PROMETHEUS_PORT, TRUST_DOMAIN

if TYPE_CHECKING:
    from istio_init.kubernetes.inject.pod import Json, PodTemplate, Workload

DISCOVERY = "istiod.istio-system.svc:15010"
REVISION = "default"
LABEL_MAX = 63  # Kubernetes' limit
RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}
TOKEN_SECONDS = 43200
# Flags of the init container that are only added if an annotation sets them.
OPTIONAL_FLAGS = (("-q", "outbound_ports"), ("-o", "outbound_exclude_ports"), ("-c", "exclude_interfaces"))
# Volumes and their mount paths in the proxy's container. This proxy takes its certificates from istio-certs.
MOUNTS = {
    "workload-socket": "/var/run/secrets/workload-spiffe-uds",
    "credential-socket": "/var/run/secrets/credential-uds",
    "workload-certs": "/var/run/secrets/workload-spiffe-credentials",
    "istiod-ca-cert": "/var/run/secrets/istio",
    "istio-data": "/var/lib/istio/data",
    "istio-envoy": "/etc/istio/proxy",
    "istio-token": "/var/run/secrets/tokens",
    "istio-certs": "/etc/certs/",
    "istio-podinfo": "/etc/istio/pod",
}


def additions(pod: PodTemplate) -> Additions:
    """Build the additions to a pod."""
    native = pod.settings.native_sidecar
    labels = {name: text for name, text in _labels(pod).items() if name not in pod.labels}
    annotations = {name: text for name, text in _annotations(pod).items() if name not in pod.annotations}
    return Additions(
        # A native sidecar starts first and also serves the pod's own init containers. A regular one starts after them, so
        # the rules must come last, or they would redirect to a proxy that is not running yet.
        init_containers=[_init(pod), _proxy(pod)] if native else [_init(pod)],
        init_first=native,
        containers=[] if native else [_proxy(pod)],
        volumes=_volumes(pod),
        labels=labels,
        annotations=annotations,
        status={"revision": REVISION, "labels": [*labels], "annotations": [*annotations]},
    )


def _labels(pod: PodTemplate) -> dict[str, str]:
    name = pod.labels.get("app.kubernetes.io/name") or pod.labels.get("app") or pod.name
    return {
        "security.istio.io/tlsMode": "istio",
        "service.istio.io/canonical-name": name[:LABEL_MAX].strip("-_."),
        "service.istio.io/canonical-revision": pod.labels.get("app.kubernetes.io/version")
        or pod.labels.get("version")
        or "latest",
    }


def _annotations(pod: PodTemplate) -> dict[str, str]:
    return {
        "istio.io/rev": REVISION,
        "kubectl.kubernetes.io/default-container": pod.containers[0],
        "kubectl.kubernetes.io/default-logs-container": pod.containers[0],
    }


def _init(pod: PodTemplate) -> Json:
    return {
        "name": INIT,
        "image": pod.settings.init_image,
        "imagePullPolicy": "IfNotPresent",
        "args": [
            *(IPTABLES_COMMAND, "-p", str(ENVOY_PORT), "-z", str(INBOUND_PORT)),
            *("-u", str(PROXY_UID), "-m", pod.parsed.mode.value),
            *("-i", pod.flag("service_cidrs", ALL), "-x", pod.flag("service_exclude_cidrs", "")),
            *("-b", pod.flag("inbound_ports", ALL), "-d", _excluded(pod)),
            *pod.optional_flags(*OPTIONAL_FLAGS, *OWN_FLAGS),
            "--log_output_level=default:info",
        ],
        "resources": RESOURCES,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": False,
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
        },
    }


def _excluded(pod: PodTemplate) -> str:
    """Return the inbound ports to exclude: the proxy's own and those of the annotation."""
    health = pod.parsed.status_port if pod.parsed.is_status_port_set else HEALTH_PORT
    own = [PROMETHEUS_PORT, READINESS_PORT]
    named = [*filter(None, [pod.flag("inbound_exclude_ports", "")]), *map(str, filter(None, [health]))]
    return ",".join([*map(str, own), *named])


def _proxy(pod: PodTemplate) -> Json:
    native, port = pod.settings.native_sidecar, pod.parsed.status_port
    startup = {**readiness_probe(port, 0, 1, 600)}
    probes = {"startupProbe": startup, "readinessProbe": readiness_probe(port, 0, 15, 4)} if port else {}
    return {
        "name": PROXY,
        "image": pod.parsed.proxy_image,
        "imagePullPolicy": "IfNotPresent",
        **({"restartPolicy": "Always"} if native else {}),
        "args": _arguments(pod),
        "env": _environment(pod),
        "ports": [{"containerPort": PROMETHEUS_PORT, "name": "http-envoy-prom", "protocol": "TCP"}],
        **probes,
        "resources": RESOURCES,
        "securityContext": _context(pod.parsed.mode),
        "volumeMounts": [
            {"name": name, "mountPath": path, **({"readOnly": True} if name == "istio-certs" else {})}
            for name, path in MOUNTS.items()
        ],
    }


def _arguments(pod: PodTemplate) -> list[str]:
    settings = pod.settings
    zipkin = settings.zipkin_address
    return [
        *("proxy", "sidecar", "--domain", f"$(POD_NAMESPACE).svc.{TRUST_DOMAIN}"),
        *("--serviceCluster", pod.labels.get("app") or pod.name, "--proxyLogLevel", "warning"),
        *("--drainDuration", "45s", "--parentShutdownDuration", "1m0s", "--connectTimeout", "10s"),
        *("--discoveryAddress", settings.discovery_address or DISCOVERY, "--controlPlaneAuthPolicy", "NONE"),
        *(("--zipkinAddress", zipkin) if zipkin else ()),
        *("--proxyAdminPort", str(ADMIN_PORT), "--statusPort", str(pod.parsed.status_port)),
    ]


def _environment(pod: PodTemplate) -> list[Json]:
    ports = [{"containerPort": port, "protocol": "TCP"} for _, port in pod.ports]
    return [
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        variable("ISTIO_META_POD_PORTS", json.dumps(ports, separators=(",", ":"))),
        variable("ISTIO_META_APP_CONTAINERS", ",".join(pod.containers)),
        variable("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        variable("ISTIO_META_INTERCEPTION_MODE", pod.parsed.mode.value),
        variable("ISTIO_META_WORKLOAD_NAME", pod.name),
        *_owner(pod.workload),
        variable("ISTIO_META_MESH_ID", TRUST_DOMAIN),
        variable("TRUST_DOMAIN", TRUST_DOMAIN),
        variable("ISTIO_METAJSON_LABELS", compact({**_labels(pod), **pod.labels})),
    ]


def _owner(workload: Workload) -> list[Json]:
    """Name the pod's owner as Istio's injector does; the kubelet expands the namespace, which manifests can lack."""
    if not workload.api_version:
        return []
    kind = f"{workload.kind.lower()}s"
    value = f"kubernetes://apis/{workload.api_version}/namespaces/$(POD_NAMESPACE)/{kind}/{workload.name}"
    return [{"name": "ISTIO_META_OWNER", "value": value}]


def _context(mode: Mode) -> Json:
    transparent = mode is Mode.TPROXY
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "capabilities": {**({"add": ["NET_ADMIN"]} if transparent else {}), "drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        **proxy_user(mode),
        "runAsGroup": PROXY_UID,
        "runAsNonRoot": not transparent,
    }


def _volumes(pod: PodTemplate) -> list[Json]:
    token = {"path": "istio-token", "expirationSeconds": TOKEN_SECONDS, "audience": "istio-ca"}
    podinfo = [{"path": name, "fieldRef": {"fieldPath": f"metadata.{name}"}} for name in ("labels", "annotations")]
    sources: dict[str, Json] = {
        # Optional, unlike in Istio: this proxy does not need it, so pods also run without an Istio control plane.
        "istiod-ca-cert": {"configMap": {"name": "istio-ca-root-cert", "optional": True}},
        "istio-envoy": {"emptyDir": {"medium": "Memory"}},
        "istio-token": {"projected": {"sources": [{"serviceAccountToken": token}]}},
        "istio-certs": {"secret": {"secretName": f"istio.{pod.service_account}", "optional": True}},
        "istio-podinfo": {"downwardAPI": {"items": podinfo}},
    }
    return [{"name": name, **sources.get(name, {"emptyDir": {}})} for name in MOUNTS]
