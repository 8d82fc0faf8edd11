"""Two pods in real containers (docker/compose.yaml): what passes through their Envoys, what keeps one from starting."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.docker.engine import INIT, LAB, LEAST, POD, docker, inspect, run, until
from tests.docker.proxies import INBOUND, REVIEWS, requests, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_docker.plugin import Services

PAGE = "http://productpage:9080/productpage"
# Asks without a pause until it is told to stop, and prints how often it was answered well, and otherwise.
ASKING = """
import json, sys, threading, urllib.request
stop, good, bad = threading.Event(), 0, []
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
print("asking", flush=True)
while not stop.is_set():
    try:
        answer = json.load(urllib.request.urlopen(sys.argv[1], timeout=5))
        assert answer["calls"]["status"] == 200, answer
        good += 1
    except Exception as error:
        bad.append(repr(error))
print(json.dumps({"good": good, "bad": bad}), flush=True)
"""


class Mesh:
    """The containers of the compose file."""

    def __init__(self, services: Services) -> None:
        self._compose = services._docker_compose  # noqa: SLF001 - pytest-docker has no public way to a container

    def container(self, service: str) -> str:
        return str(self._compose.execute(f"ps -q {service}").decode()).strip()

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        return docker("exec", self.container(service), *command, check=check).stdout

    def ask(self, service: str, url: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.execute(service, "curl", "-sS", "--max-time", "10", url))
        return answer

    def requests(self, pod: str, cluster: str) -> int:
        """Count the requests that a pod's Envoy has passed on to a cluster."""
        return requests(partial(self.execute, f"{pod}-proxy"), cluster)


@pytest.fixture(scope="module")
def mesh(docker_services: Services) -> Mesh:
    made = Mesh(docker_services)
    for pod in ("productpage", "reviews"):
        wait_until_ready(partial(made.execute, f"{pod}-proxy"), pod)
    return made


def test_the_init_container_of_each_pod_ran_once_and_succeeded(mesh: Mesh) -> None:
    for pod in ("productpage", "reviews"):
        state = inspect(mesh.container(f"{pod}-init"))
        assert (state["State"]["Status"], state["State"]["ExitCode"], state["RestartCount"]) == ("exited", 0, 0)
        assert "layout istio-1.0 applied" in docker("logs", mesh.container(f"{pod}-init")).stderr


def test_the_pod_has_exactly_the_arguments_of_the_example(mesh: Mesh, root: Path) -> None:
    spec = yaml.safe_load((root / "docker" / "pod.yaml").read_text(encoding="utf-8"))["spec"]
    (init,), (proxy,) = spec["initContainers"], [one for one in spec["containers"] if one["name"] == "istio-proxy"]
    assert inspect(mesh.container("productpage-init"))["Config"]["Cmd"] == init["args"]
    config = inspect(mesh.container("productpage-proxy"))["Config"]
    assert config["Cmd"] == proxy["args"]
    assert config["User"] == "1337"
    given = dict(line.split("=", 1) for line in config["Env"])
    assert {one["name"] for one in proxy["env"]} <= set(given)


def test_a_request_from_app_to_app_goes_through_both_envoys(mesh: Mesh) -> None:
    before = (mesh.requests("productpage", REVIEWS), mesh.requests("reviews", INBOUND))
    answer = mesh.ask("client", PAGE)
    assert (answer["service"], answer["calls"]["service"]) == ("productpage", "reviews")
    assert "x-request-id" in answer["calls"]["headers"]
    until("the first Envoy counts it as outbound", lambda: mesh.requests("productpage", REVIEWS) == before[0] + 1)
    until("the second Envoy counts it as inbound", lambda: mesh.requests("reviews", INBOUND) == before[1] + 1)


def test_the_request_of_a_client_without_a_proxy_is_captured_inbound(mesh: Mesh) -> None:
    before = mesh.requests("reviews", INBOUND)
    answer = mesh.ask("client", "http://reviews:9080/")
    assert answer["service"] == "reviews"
    assert answer["caller"].startswith(("127.0.0.1:", "198.18.64.11:")), (
        "the app is called by its own Envoy, not by the client"
    )
    until("the Envoy counts it as inbound", lambda: mesh.requests("reviews", INBOUND) == before + 1)


def test_the_init_container_may_run_again_under_traffic(mesh: Mesh) -> None:
    argv = ["docker", "exec", "-i", mesh.container("client"), "python3", "-c", ASKING, PAGE]
    asking = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(120, asking.kill)
    watch.start()
    try:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "asking\n"
        before = mesh.requests("reviews", INBOUND)
        for pod in ("productpage", "reviews"):
            network = f"--network=container:{mesh.container(f'{pod}-pause')}"
            assert "already in place" in run(INIT, *POD, flags=(network, *LEAST)).stderr
            changed = run(INIT, *POD[:-2], "-d", "", "-x", "192.0.2.0/24", flags=(network, *LEAST))
            assert "applied" in changed.stderr, "another plan is written while requests go on"
            assert "applied" in run(INIT, *POD, flags=(network, *LEAST)).stderr
        until("requests went on", lambda: mesh.requests("reviews", INBOUND) > before + 20)
        told, _ = asking.communicate("stop\n", timeout=60)
    finally:
        watch.cancel()
        asking.kill()
        asking.wait()
    count = json.loads(told)
    assert count["bad"] == []
    assert count["good"] > 20


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[list[str]]:
    """Give the command line of a pod whose init container has a bad argument."""
    file = tmp_path / "compose.yaml"
    pod = {
        "pause": {"image": LAB, "init": True, "entrypoint": ["python3", "-c", "import signal; signal.pause()"]},
        "istio-init": {"image": INIT, "command": ["-p", "none"], "network_mode": "service:pause"},
        "app": {
            "image": LAB,
            "network_mode": "service:pause",
            "depends_on": {"istio-init": {"condition": "service_completed_successfully"}},
        },
    }
    file.write_text(json.dumps({"version": "3.9", "services": pod}), encoding="ascii")
    command = ["docker-compose", "-p", f"failing{os.getpid()}", "-f", str(file)]
    yield command
    subprocess.run([*command, "down", "--volumes", "--timeout", "1"], check=True, capture_output=True, timeout=120)


def test_an_init_container_that_fails_keeps_the_pod_from_starting(failing: list[str]) -> None:
    up = subprocess.run([*failing, "up", "-d"], check=False, capture_output=True, text=True, timeout=120)
    assert up.returncode != 0
    logs = subprocess.run([*failing, "logs", "istio-init"], check=True, capture_output=True, text=True).stdout
    assert "istio-init: error: -p/--envoy-port: 'none'" in logs

    def containers(service: str) -> list[str]:
        return subprocess.run([*failing, "ps", "-q", service], check=True, capture_output=True, text=True).stdout.split()

    (init,) = containers("istio-init")
    assert inspect(init)["State"]["ExitCode"] == 2
    assert [inspect(app)["State"]["StartedAt"] for app in containers("app")] in ([], ["0001-01-01T00:00:00Z"])
