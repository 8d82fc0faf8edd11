"""The pod of docker/pod.yaml, and another like it, as a Kubernetes reader of manifests makes them: `podman kube play`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.docker.engine import INIT, LAB, PROXY, docker, until
from tests.docker.proxies import INBOUND, REVIEWS, requests, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.docker.proxies import Execute

NETWORK, SUBNET = "mesh", "198.18.65"
CONTROL = f"{SUBNET}.2"
ADDRESSES = {"productpage": f"{SUBNET}.10", "reviews": f"{SUBNET}.11"}
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
Podman = Callable[..., "subprocess.CompletedProcess[str]"]


def manifest(text: str, name: str, services: list[Any]) -> dict[str, Any]:
    """Put in what podman 4.3 cannot find out, and leave out an optional secret, which it does not know."""
    pod: dict[str, Any] = yaml.safe_load(text.replace("productpage", name))
    spec = pod["spec"]
    pod["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    spec["restartPolicy"] = "Never"
    spec["hostAliases"] = [
        {"ip": CONTROL, "hostnames": ["istio-pilot.istio-system"]},
        *({"ip": one["addresses"][0], "hostnames": [one["name"]]} for one in services),
    ]
    # Nothing listens there, so that whoever asks for more than is in /etc/hosts is refused at once.
    spec["dnsPolicy"], spec["dnsConfig"] = "None", {"nameservers": ["127.0.0.1"]}
    (init,) = spec["initContainers"]
    app, proxy = spec["containers"]
    del app["ports"]  # podman 4.3 takes them for ports of the host, which only one pod can have
    init["image"], proxy["image"], app["image"] = (f"localhost/{name}:latest" for name in (INIT, PROXY, LAB))
    calls = ["--calls", "http://reviews:9080/"] if name == "productpage" else []
    app["args"] = ["istio_init.lab.app", "--service", name, *calls]
    # What a field of the pod's own status is, for podman 4.3 knows only the name.
    fields = {"metadata.name": name, "metadata.namespace": "default", "status.podIP": ADDRESSES[name]}
    for variable in proxy["env"]:
        if field := variable.pop("valueFrom", None):
            variable["value"] = fields[field["fieldRef"]["fieldPath"]]
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
    call("pod", "rm", "--all", "--force", "--time", "1", check=False)
    call("rm", "--all", "--force", "--time", "1", check=False)
    call("network", "rm", "--force", NETWORK, check=False)
    call("system", "reset", "--force", check=False)


@pytest.fixture(scope="module")
def mesh(podman: Podman, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, Execute]:
    """Make the pods and their control plane, and give what runs a program in each one's proxy."""
    home = tmp_path_factory.mktemp("manifest")
    docker_files: Path = pytestconfig.rootpath / "docker"
    world = json.loads((docker_files / "world.json").read_text(encoding="utf-8"))
    for one in world["pods"]:
        one["addresses"] = [ADDRESSES[one["name"]]]
    (home / "world.json").write_text(json.dumps(world), encoding="utf-8")
    files = ("--world", "/world/world.json", "--status", "/tmp/status.json")
    mount = f"--volume={home}:/world:ro"
    podman("run", "-d", f"--network={NETWORK}:ip={CONTROL}", "--user=0", mount, LAB, "istio_init.lab.control_plane", *files)
    text = (docker_files / "pod.yaml").read_text(encoding="utf-8")
    for name, address in ADDRESSES.items():
        file = home / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest(text, name, world["services"])), encoding="utf-8")
        podman("kube", "play", "--network", f"{NETWORK}:ip={address}", str(file))

    def execute(container: str, *command: str, check: bool = True) -> str:
        return podman("exec", container, *command, check=check).stdout

    made: dict[str, Execute] = {name: partial(execute, f"{name}-istio-proxy") for name in ADDRESSES}
    for name, proxy in made.items():
        wait_until_ready(proxy, name)
    return made


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("pod", ADDRESSES)
def test_podman_makes_the_pod_of_the_manifest(pod: str, podman: Podman) -> None:
    init = json.loads(podman("inspect", f"{pod}-istio-init").stdout)[0]
    assert init["State"]["ExitCode"] == 0
    assert "layout istio-1.0 applied" in podman("logs", f"{pod}-istio-init").stderr


def test_a_request_between_podmans_pods_goes_through_both_envoys(mesh: dict[str, Execute], podman: Podman) -> None:
    def counts() -> tuple[int, ...]:
        clusters = {"productpage": [INBOUND, REVIEWS], "reviews": [INBOUND]}
        return tuple(requests(mesh[pod], cluster) for pod, names in clusters.items() for cluster in names)

    before = counts()
    page = f"http://{ADDRESSES['productpage']}:9080/productpage"
    asked = podman("run", "--rm", f"--network={NETWORK}", "--entrypoint=curl", LAB, "-sS", "--max-time", "10", page)
    answer = json.loads(asked.stdout)
    assert (answer["service"], answer["calls"]["service"]) == ("productpage", "reviews")
    assert answer["caller"].startswith(("127.0.0.1:", f"{ADDRESSES['productpage']}:")), "by its own Envoy, not by the client"
    assert "x-request-id" in answer["calls"]["headers"], "Envoy gives each request a name"
    until("all three ways are counted", lambda: counts() == tuple(count + 1 for count in before))


def test_an_init_container_that_fails_keeps_podmans_pod_from_starting(
    podman: Podman, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    text = (pytestconfig.rootpath / "docker" / "pod.yaml").read_text(encoding="utf-8")
    pod = manifest(text, "reviews", [])
    pod["metadata"]["name"] = "failing"
    pod["spec"]["initContainers"][0]["args"] = ["-p", "none"]
    (tmp_path / "failing.yaml").write_text(yaml.safe_dump(pod), encoding="utf-8")
    podman("kube", "play", "--network", NETWORK, str(tmp_path / "failing.yaml"), check=False)
    init = json.loads(podman("inspect", "failing-istio-init").stdout)[0]
    assert init["State"]["ExitCode"] == 2
    assert "istio-init: error: -p/--envoy-port: 'none'" in podman("logs", "failing-istio-init").stderr
    app = json.loads(podman("inspect", "failing-reviews").stdout)[0]
    assert app["State"]["Status"] in ("created", "configured")
