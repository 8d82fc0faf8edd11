"""The sidecar as Istio 1.0's injector adds it. Pure.

Source: a pod of Istio 1.0.5. Kubernetes' defaults are written out, so that the manifest shows exactly what runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.kubernetes.inject.pod import Additions, compact, field, proxy_user, readiness_probe, variable
from istio_init.kubernetes.inject.settings import OWN_FLAGS
from istio_init.kubernetes.manifest import INIT, PROXY
from istio_init.rules.model import ENVOY_PORT, PROXY_UID, Mode
from istio_init.rules.values import ALL
from istio_init.sidecar.bootstrap.settings import ADMIN_PORT, PROMETHEUS_PORT

if TYPE_CHECKING:
    from istio_init.kubernetes.inject.pod import Json, PodTemplate

DISCOVERY = "istio-pilot.istio-system:15007"
ZIPKIN = "zipkin.istio-system:9411"
READ_BY_ALL = 0o644
MESSAGES = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
UNPRIVILEGED_CONTEXT = {
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsUser": 0,
    "runAsNonRoot": False,  # overrides the pod's security context
    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
}


def additions(pod: PodTemplate) -> Additions:
    """Build the additions to a pod."""
    return Additions(
        init_containers=[_init(pod)],
        init_first=False,
        containers=[_proxy(pod)],
        volumes=[
            {"name": "istio-envoy", "emptyDir": {"medium": "Memory"}},
            {
                "name": "istio-certs",
                "secret": {"secretName": f"istio.{pod.service_account}", "optional": True, "defaultMode": READ_BY_ALL},
            },
        ],
        labels={},
        annotations={},
        status={},
    )


def _init(pod: PodTemplate) -> Json:
    privileged_context = {"capabilities": {"add": ["NET_ADMIN"]}, "privileged": True}
    return {
        "name": INIT,
        "image": pod.settings.init_image,
        "imagePullPolicy": "IfNotPresent",
        "args": [
            *("-p", str(ENVOY_PORT), "-u", str(PROXY_UID), "-m", pod.parsed.mode.value),
            *("-i", pod.flag("service_cidrs", ALL), "-x", pod.flag("service_exclude_cidrs", "")),
            *("-b", pod.flag("inbound_ports", pod.app_ports), "-d", _excluded(pod)),
            *pod.optional_flags(*OWN_FLAGS),
        ],
        "resources": {},
        "securityContext": UNPRIVILEGED_CONTEXT if pod.settings.unprivileged else privileged_context,
        **MESSAGES,
    }


def _excluded(pod: PodTemplate) -> str:
    """Exclude the readiness port if all ports are captured; otherwise -d has no effect."""
    own = [str(pod.parsed.status_port)] if pod.parsed.status_port and pod.flag("inbound_ports", "") == ALL else []
    return ",".join([*filter(None, [pod.flag("inbound_exclude_ports", "")]), *own])


def _proxy(pod: PodTemplate) -> Json:
    status_port = pod.parsed.status_port
    probe = {"readinessProbe": readiness_probe(status_port, 1, 2, 30)} if status_port else {}
    return {
        "name": PROXY,
        "image": pod.parsed.proxy_image,
        "imagePullPolicy": "IfNotPresent",
        "args": _arguments(pod),
        "env": _environment(pod),
        "ports": [{"containerPort": PROMETHEUS_PORT, "name": "http-envoy-prom", "protocol": "TCP"}],
        **probe,
        "resources": {"requests": {"cpu": "10m"}},
        "securityContext": _context(pod),
        "volumeMounts": [
            {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
            {"name": "istio-certs", "mountPath": "/etc/certs/", "readOnly": True},
        ],
        **MESSAGES,
    }


def _arguments(pod: PodTemplate) -> list[str]:
    settings, status_port = pod.settings, pod.parsed.status_port
    zipkin = ZIPKIN if settings.zipkin_address is None else settings.zipkin_address
    readiness = ["--statusPort", str(status_port), "--applicationPorts", pod.app_ports] if status_port else []
    return [
        *("proxy", "sidecar", "--configPath", "/etc/istio/proxy", "--binaryPath", "/usr/local/bin/envoy"),
        *("--serviceCluster", pod.labels.get("app") or PROXY, "--drainDuration", "45s", "--parentShutdownDuration", "1m0s"),
        *("--discoveryAddress", settings.discovery_address or DISCOVERY, "--discoveryRefreshDelay", "1s"),
        *(("--zipkinAddress", zipkin) if zipkin else ()),
        *("--connectTimeout", "10s", "--proxyAdminPort", str(ADMIN_PORT), "--controlPlaneAuthPolicy", "NONE"),
        *readiness,
    ]


def _environment(pod: PodTemplate) -> list[Json]:
    annotations = [variable("ISTIO_METAJSON_ANNOTATIONS", compact(pod.annotations) + "\n")] if pod.annotations else []
    labels = [variable("ISTIO_METAJSON_LABELS", compact(pod.labels) + "\n")] if pod.labels else []
    return [
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("ISTIO_META_POD_NAME", "metadata.name"),
        variable("ISTIO_META_INTERCEPTION_MODE", pod.parsed.mode.value),
        *annotations,
        *labels,
    ]


def _context(pod: PodTemplate) -> Json:
    capabilities = {"capabilities": {"add": ["NET_ADMIN"]}} if pod.parsed.mode is Mode.TPROXY else {}
    return {"readOnlyRootFilesystem": True, **proxy_user(pod.parsed.mode), **capabilities}
