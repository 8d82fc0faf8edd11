"""The pod of docker/pod.yaml as a Kubernetes reader of manifests makes it: `podman kube play`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.docker.engine import INIT, LAB, PROXY, docker, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NETWORK, SUBNET = "mesh", "198.18.65"
CONTROL, ADDRESS = f"{SUBNET}.2", f"{SUBNET}.10"
CONFIGURATION = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
"""
# What a field of the pod's own status is, for podman 4.3 knows only the name.
FIELDS = {"metadata.name": "productpage", "metadata.namespace": "default", "status.podIP": ADDRESS}
READY = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:15020/healthz/ready', timeout=2).status)"

Podman = Callable[..., "subprocess.CompletedProcess[str]"]


def manifest(text: str) -> dict[str, Any]:
    """Put in what podman 4.3 cannot find out, and leave out an optional secret, which it does not know."""
    pod: dict[str, Any] = yaml.safe_load(text)
    spec = pod["spec"]
    pod["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    spec["restartPolicy"] = "Never"
    spec["hostAliases"] = [
        {"ip": CONTROL, "hostnames": ["istio-pilot.istio-system"]},
        {"ip": "10.96.0.10", "hostnames": ["productpage"]},
    ]
    # Nothing listens there, so that whoever asks for more than is in /etc/hosts is refused at once.
    spec["dnsPolicy"], spec["dnsConfig"] = "None", {"nameservers": ["127.0.0.1"]}
    (init,) = spec["initContainers"]
    app, proxy = spec["containers"]
    init["image"], proxy["image"], app["image"] = (f"localhost/{name}:latest" for name in (INIT, PROXY, LAB))
    app["args"] = ["istio_init.lab.app", "--service", "productpage"]
    for variable in proxy["env"]:
        if field := variable.pop("valueFrom", None):
            variable["value"] = FIELDS[field["fieldRef"]["fieldPath"]]
    spec["volumes"] = [one for one in spec["volumes"] if "secret" not in one]
    proxy["volumeMounts"] = [one for one in proxy["volumeMounts"] if one["name"] != "istio-certs"]
    for container in (init, app, proxy):
        container["imagePullPolicy"] = "Never"
    return pod


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Give podman, with files and a network of its own, and the images that Docker built."""
    home = tmp_path_factory.mktemp("podman")
    (home / "containers.conf").write_text(CONFIGURATION, encoding="ascii")
    (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}', encoding="ascii")
    others = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    environment = {**others, "CONTAINERS_CONF": str(home / "containers.conf"), "TMPDIR": str(home)}
    directories = ("--root", str(home / "root"), "--runroot", str(home / "run"), "--tmpdir", str(home / "tmp"))
    enter = ("nsenter", f"--net={os.environ['ISTIO_INIT_ENGINE_NAMESPACE']}")

    def call(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [*enter, "podman", *directories, "--network-config-dir", str(home / "networks"), *words]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment, timeout=200)
        assert not check or done.returncode == 0, done.stderr
        return done

    archive = str(home / "images.tar")
    docker("save", "--output", archive, INIT, PROXY, LAB)
    call("load", "--input", archive, "--signature-policy", str(home / "policy.json"))
    call("network", "create", "--disable-dns", "--subnet", f"{SUBNET}.0/24", NETWORK)
    yield call
    call("pod", "rm", "--all", "--force", check=False)
    call("rm", "--all", "--force", "--time", "1", check=False)
    call("network", "rm", "--force", NETWORK, check=False)
    call("system", "reset", "--force", check=False)


@pytest.fixture(scope="module")
def pod(podman: Podman, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> str:
    """Make the pod and its control plane, and give the name of the pod."""
    home = tmp_path_factory.mktemp("manifest")
    docker_files: Path = pytestconfig.rootpath / "docker"
    world = json.loads((docker_files / "world.json").read_text(encoding="utf-8"))
    world["services"], world["pods"] = world["services"][:1], [{**world["pods"][0], "addresses": [ADDRESS]}]
    (home / "world.json").write_text(json.dumps(world), encoding="utf-8")
    (home / "pod.yaml").write_text(
        yaml.safe_dump(manifest((docker_files / "pod.yaml").read_text(encoding="utf-8"))), encoding="utf-8"
    )
    files = ("--world", "/world/world.json", "--status", "/tmp/status.json")
    mount = f"--volume={home}:/world:ro"
    podman("run", "-d", f"--network={NETWORK}:ip={CONTROL}", "--user=0", mount, LAB, "istio_init.lab.control_plane", *files)
    podman("kube", "play", "--network", f"{NETWORK}:ip={ADDRESS}", str(home / "pod.yaml"))
    return "productpage"


def test_podman_makes_the_pod_of_the_manifest(pod: str, podman: Podman) -> None:
    def is_ready() -> bool:
        return podman("exec", f"{pod}-istio-proxy", "python3", "-c", READY, check=False).stdout.strip() == "200"

    until("the pod is ready", is_ready)
    init = json.loads(podman("inspect", f"{pod}-istio-init").stdout)[0]
    assert init["State"]["ExitCode"] == 0
    assert "layout istio-1.0 applied" in podman("logs", f"{pod}-istio-init").stderr


def test_a_request_to_podmans_pod_is_captured_inbound(pod: str, podman: Podman) -> None:
    asked = podman("run", "--rm", f"--network={NETWORK}", "--entrypoint=curl", LAB, "-sS", f"http://{ADDRESS}:9080/")
    answer = json.loads(asked.stdout)
    assert answer["service"] == pod
    assert answer["caller"].startswith(("127.0.0.1:", f"{ADDRESS}:"))
    assert "x-request-id" in answer["headers"], "Envoy gives each request a name"
