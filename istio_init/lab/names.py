"""What names the lab's pods know, and from where. Pure.

As in Kubernetes, a pod's hosts file has little more than the pod itself, and services are known to the cluster's name
server. The address of the control plane is in the hosts file, too, so that proxies do not wait for a name server that starts
with them.
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
    """Write /etc/hosts of a pod."""
    control = control_pod(settings)
    names = [f"{service}.{control.namespace}" for service in (control.service, "zipkin")]
    lines = ["127.0.0.1 localhost", *(["::1 localhost"] if Family.IPV6 in settings.families else [])]
    lines += [f"{address} {pod.name}" for address in pod.addresses]
    lines += [f"{address} {' '.join(names)}" for address in control.addresses]
    return _text(lines)


def resolv_conf(settings: LabSettings, pod: PodPlan) -> str:
    """Write /etc/resolv.conf of a pod as a kubelet does: the cluster's name server, and where short names are looked for."""
    servers = [f"nameserver {address}" for address in control_pod(settings).addresses]
    return _text([*servers, f"search {pod.domain} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}", "options ndots:5"])


def service_names(settings: LabSettings) -> str:
    """Write what a proxy's resolver knows: the services of the mesh, in the form of hosts(5)."""
    return _text(_services(settings))


def all_names(settings: LabSettings) -> str:
    """Write what the cluster's name server knows: services, and pods by their names alone, in the form of hosts(5)."""
    pods = [*mesh_pods(settings), client_pod(settings)]
    return _text([*_services(settings), *(f"{address} {pod.name}" for pod in pods for address in pod.addresses)])


def _services(settings: LabSettings) -> Iterator[str]:
    for number, pod in enumerate(mesh_pods(settings)):
        for address in vips(settings, number):
            yield f"{address} {pod.service}.{pod.domain}"


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
