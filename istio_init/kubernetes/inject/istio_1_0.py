"""The sidecar as Istio 1.0's injector writes it. Pure.

Source: a pod of Istio 1.0.5. Members that Kubernetes would fill in itself are written out: what is injected is what runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.kubernetes.inject.pod import Pieces, compact, field, proxy_user, readiness_probe, variable
from istio_init.kubernetes.manifest import INIT, PROXY
from istio_init.rules.model import ENVOY_PORT, PROXY_UID, Mode
from istio_init.rules.values import ALL
from istio_init.sidecar.bootstrap.settings import ADMIN_PORT, PROMETHEUS_PORT

if TYPE_CHECKING:
    from istio_init.kubernetes.inject.pod import Json, Pod

DISCOVERY = "istio-pilot.istio-system:15007"
ZIPKIN = "zipkin.istio-system:9411"
READ_BY_ALL = 0o644
MESSAGES = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
NEEDED = {
    "privileged": False,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsUser": 0,
    "runAsNonRoot": False,  # whatever the pod says of its own containers
    "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
}


def pieces(pod: Pod) -> Pieces:
    """Make what is added to a pod."""
    return Pieces(
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


def _init(pod: Pod) -> Json:
    privileged = {"capabilities": {"add": ["NET_ADMIN"]}, "privileged": True}
    return {
        "name": INIT,
        "image": pod.settings.init_image,
        "imagePullPolicy": "IfNotPresent",
        "args": [
            *("-p", str(ENVOY_PORT), "-u", str(PROXY_UID), "-m", pod.wishes.mode.value),
            *("-i", pod.flag("service_cidrs", ALL), "-x", pod.flag("service_exclude_cidrs", "")),
            *("-b", pod.flag("inbound_ports", pod.app_ports), "-d", _excluded(pod)),
        ],
        "resources": {},
        "securityContext": NEEDED if pod.settings.unprivileged else privileged,
        **MESSAGES,
    }


def _excluded(pod: Pod) -> str:
    """Leave the port of readiness alone where all ports are captured; elsewhere -d counts for nothing."""
    own = [str(pod.wishes.status_port)] if pod.wishes.status_port and pod.flag("inbound_ports", "") == ALL else []
    return ",".join([*filter(None, [pod.flag("inbound_exclude_ports", "")]), *own])


def _proxy(pod: Pod) -> Json:
    status_port = pod.wishes.status_port
    probe = {"readinessProbe": readiness_probe(status_port, 1, 2, 30)} if status_port else {}
    return {
        "name": PROXY,
        "image": pod.wishes.proxy_image,
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


def _arguments(pod: Pod) -> list[str]:
    settings, wishes = pod.settings, pod.wishes
    zipkin = ZIPKIN if settings.zipkin_address is None else settings.zipkin_address
    readiness = ["--statusPort", str(wishes.status_port), "--applicationPorts", pod.app_ports] if wishes.status_port else []
    return [
        *("proxy", "sidecar", "--configPath", "/etc/istio/proxy", "--binaryPath", "/usr/local/bin/envoy"),
        *("--serviceCluster", pod.labels.get("app") or PROXY, "--drainDuration", "45s", "--parentShutdownDuration", "1m0s"),
        *("--discoveryAddress", settings.discovery_address or DISCOVERY, "--discoveryRefreshDelay", "1s"),
        *(("--zipkinAddress", zipkin) if zipkin else ()),
        *("--connectTimeout", "10s", "--proxyAdminPort", str(ADMIN_PORT), "--controlPlaneAuthPolicy", "NONE"),
        *readiness,
    ]


def _environment(pod: Pod) -> list[Json]:
    annotations = [variable("ISTIO_METAJSON_ANNOTATIONS", compact(pod.annotations) + "\n")] if pod.annotations else []
    labels = [variable("ISTIO_METAJSON_LABELS", compact(pod.labels) + "\n")] if pod.labels else []
    return [
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("ISTIO_META_POD_NAME", "metadata.name"),
        variable("ISTIO_META_INTERCEPTION_MODE", pod.wishes.mode.value),
        *annotations,
        *labels,
    ]


def _context(pod: Pod) -> Json:
    capabilities = {"capabilities": {"add": ["NET_ADMIN"]}} if pod.wishes.mode is Mode.TPROXY else {}
    return {"readOnlyRootFilesystem": True, **proxy_user(pod.wishes.mode), **capabilities}
