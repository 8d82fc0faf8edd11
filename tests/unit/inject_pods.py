"""Pods to inject: the productpage of Bookinfo, and what Istio 1.0.5 adds to it."""

from __future__ import annotations

from typing import Any

from istio_init.kubernetes.inject import InjectSettings, Workload, inject_template
from istio_init.rules.layout import CURRENT

Json = dict[str, Any]

WHERE = "pod.yaml: document 2"
ISTIO_1_0 = InjectSettings(init_image="docker.io/istio/proxy_init:1.0.5", proxy_image="docker.io/istio/proxyv2:1.0.5")
TODAY = InjectSettings(layout=CURRENT)
NATIVE = TODAY._replace(native_sidecar=True)
SETTINGS = {
    "istio-1.0": ISTIO_1_0,
    "unprivileged": ISTIO_1_0._replace(unprivileged=True),
    "current": TODAY,
    "native": NATIVE,
}


def template(annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, **spec: Any) -> Json:
    """Make the productpage's template, but for what is given."""
    metadata: Json = {"labels": {"app": "productpage", "version": "v1"} if labels is None else labels}
    if annotations is not None:
        metadata["annotations"] = annotations
    app = {"name": "productpage", "image": "productpage:1", "ports": [{"containerPort": 9080}]}
    return {"metadata": metadata, "spec": {"containers": [app], **spec}}


def injected(of: Json, settings: InjectSettings = ISTIO_1_0) -> Json:
    found = inject_template(
        of, settings, Workload("productpage-v1", kind="Deployment", api_version="apps/v1"), WHERE
    ).template
    assert found is not None
    return found


def init_of(of: Json) -> Json:
    (found,) = [one for one in of["spec"]["initContainers"] if one["name"] == "istio-init"]
    assert isinstance(found, dict)
    return found


def proxy_of(of: Json) -> Json:
    every = [*of["spec"]["containers"], *of["spec"]["initContainers"]]
    (found,) = [one for one in every if one["name"] == "istio-proxy"]
    assert isinstance(found, dict)
    return found


def flag(container: Json, name: str) -> str:
    """Give the word behind a flag."""
    words = [part for word in container["args"] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    value = words[words.index(name) + 1]
    assert isinstance(value, str)
    return value


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


# A pod of Istio 1.0.5, as a cluster shows it.
INIT_1_0: Json = {
    "name": "istio-init",
    "image": "docker.io/istio/proxy_init:1.0.5",
    "imagePullPolicy": "IfNotPresent",
    "args": ["-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", ""],
    "resources": {},
    "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}, "privileged": True},
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
PROXY_1_0: Json = {
    "name": "istio-proxy",
    "image": "docker.io/istio/proxyv2:1.0.5",
    "imagePullPolicy": "IfNotPresent",
    "args": [
        *("proxy", "sidecar", "--configPath", "/etc/istio/proxy", "--binaryPath", "/usr/local/bin/envoy"),
        *("--serviceCluster", "productpage", "--drainDuration", "45s", "--parentShutdownDuration", "1m0s"),
        *("--discoveryAddress", "istio-pilot.istio-system:15007", "--discoveryRefreshDelay", "1s"),
        *("--zipkinAddress", "zipkin.istio-system:9411", "--connectTimeout", "10s", "--proxyAdminPort", "15000"),
        *("--controlPlaneAuthPolicy", "NONE"),
    ],
    "env": [
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("INSTANCE_IP", "status.podIP"),
        _field("ISTIO_META_POD_NAME", "metadata.name"),
        {"name": "ISTIO_META_INTERCEPTION_MODE", "value": "REDIRECT"},
        {"name": "ISTIO_METAJSON_LABELS", "value": '{"app":"productpage","version":"v1"}\n'},
    ],
    "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
    "resources": {"requests": {"cpu": "10m"}},
    "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 1337},
    "volumeMounts": [
        {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
        {"name": "istio-certs", "mountPath": "/etc/certs/", "readOnly": True},
    ],
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
VOLUMES_1_0: list[Json] = [
    {"name": "istio-envoy", "emptyDir": {"medium": "Memory"}},
    {"name": "istio-certs", "secret": {"secretName": "istio.default", "optional": True, "defaultMode": 420}},
]
