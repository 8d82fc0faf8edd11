"""Name resolution in the lab's pods. Pure.

As in Kubernetes, a pod's hosts file contains little more than the pod itself, and services are resolved by the cluster's
name server. The hosts file also has the control plane, so that proxies need not wait for the name server to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.lab.settings import client_pod, control_pod, mesh_pods, vips
from istio_init.rules.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from istio_init.lab.settings import LabSettings, PodPlan

LISTENING = "dns listening"  # the first line of a name server's log
CLUSTER_DOMAIN = "cluster.local"


def hosts_file(settings: LabSettings, pod: PodPlan) -> str:
    """Render a pod's /etc/hosts."""
    control = control_pod(settings)
    names = [f"{service}.{control.namespace}" for service in (control.service, "zipkin")]
    lines = ["127.0.0.1 localhost", *(["::1 localhost"] if Family.IPV6 in settings.families else [])]
    lines += [f"{address} {pod.name}" for address in pod.addresses]
    lines += [f"{address} {' '.join(names)}" for address in control.addresses]
    return _text(lines)


def resolv_conf(settings: LabSettings, pod: PodPlan) -> str:
    """Render a pod's /etc/resolv.conf like the kubelet: the cluster's name server and search domains."""
    servers = [f"nameserver {address}" for address in control_pod(settings).addresses]
    return _text([*servers, f"search {pod.domain} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}", "options ndots:5"])


def service_names(settings: LabSettings) -> str:
    """Render the names of the proxy's resolver, the services of the mesh, in hosts(5) format."""
    return _text(_services(settings))


def all_names(settings: LabSettings) -> str:
    """Render the names of the cluster's name server, services and pods, in hosts(5) format."""
    pods = [*mesh_pods(settings), client_pod(settings)]
    return _text([*_services(settings), *(f"{address} {pod.name}" for pod in pods for address in pod.addresses)])


def _services(settings: LabSettings) -> Iterator[str]:
    for number, pod in enumerate(mesh_pods(settings)):
        for address in vips(settings, number):
            yield f"{address} {pod.service}.{pod.domain}"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
