"""What happens to a pod's traffic when its surroundings change: control plane, certificates, crashes, the end."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from istio_init.core.errors import IstioInitError
from istio_init.lab.certificates import Authority
from istio_init.lab.client import Lab
from istio_init.lab.pods import CERTIFICATES, CONTROL
from istio_init.lab.settings import APP_PORT, CONTROL_PLANE, STATUS_PORT, LabSettings, mesh_pods
from tests.lab.live import ADMIN, Live, live, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REVIEWS = mesh_pods(LabSettings())[1].address
URL = f"http://reviews:{APP_PORT}/"
READY = f"http://{REVIEWS}:{STATUS_PORT}/healthz/ready"
DRAIN = 4.0  # seconds
LOOSE_SOCKET = {"name": "no-such-thing", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 12345}}}  # noqa: S104 - a sample


@pytest.fixture(scope="module")
def lab() -> Iterator[Live]:
    drain = ("--drainDuration", f"{DRAIN:g}s", "--parentShutdownDuration", f"{DRAIN + 1:g}s")
    with live(LabSettings(proxy=drain)) as made:
        yield made


def alias(world: dict[str, Any]) -> None:
    """Add one more name for the reviews."""
    (reviews,) = [service for service in world["services"] if service["name"] == "reviews"]
    world["services"].append({**reviews, "name": "opinions", "addresses": ["10.96.0.99"]})


def without_alias(world: dict[str, Any]) -> None:
    world["services"] = [service for service in world["services"] if service["name"] != "opinions"]


def test_readiness_comes_only_after_clusters_and_listeners(lab: Live) -> None:
    assert lab.curl("client", READY).strip() == "ready"
    lab.stop_control_plane(signal.SIGKILL)
    lab.send("reviews", signal.SIGINT)
    lab.start("reviews")
    wait_for("the proxy answers", lambda: "CDS or LDS" in lab.run("client", "curl", "-s", READY, check=False).stdout)
    assert lab.run("client", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", READY).stdout == "503"
    lab.start_control_plane()
    wait_for("readiness", lambda: lab.run("client", "curl", "-sf", READY, check=False).returncode == 0)
    assert lab.stat("reviews", "cluster_manager.cds.update_success") > 0
    assert lab.stat("reviews", "listener_manager.lds.update_success") > 0


def test_traffic_goes_on_without_a_control_plane_and_updates_resume_with_it(lab: Live) -> None:
    lab.stop_control_plane(signal.SIGKILL)
    for _ in range(10):
        assert lab.app("productpage", URL)["service"] == "reviews"
    lab.serve(alias)
    lab.start_control_plane()
    by_name = ("-H", "Host: opinions")
    wait_for(
        "the update", lambda: "opinions" in str(lab.admin("productpage", "/config_dump?resource=dynamic_route_configs"))
    )
    before = lab.stat(
        "productpage", f"cluster.outbound|{APP_PORT}||opinions.default.svc.cluster.local.upstream_rq_completed"
    )
    assert lab.app("productpage", URL, *by_name)["service"] == "reviews"
    name = f"cluster.outbound|{APP_PORT}||opinions.default.svc.cluster.local.upstream_rq_completed"
    assert lab.stat("productpage", name) == before + 1
    lab.serve(without_alias)


def test_an_update_that_envoy_rejects_is_reported_and_traffic_goes_on(lab: Live) -> None:
    def broken(world: dict[str, Any]) -> None:
        world["extra"] = {
            **(world.get("extra") or {}),
            "listeners": [{**LOOSE_SOCKET, "filter_chains": [{"filters": [{"name": "x"}]}]}],
        }

    wait_for("the listeners", lambda: "LDS" in lab.discovery("productpage-v1"))  # after a new control plane
    before = lab.serve(broken)
    try:
        wait_for("the refusal", lambda: lab.discovery("productpage-v1")["LDS"]["nack"])
        message = lab.discovery("productpage-v1")["LDS"]["nack"]
        assert "no-such-thing" in message
        (line, *_) = [line for line in lab.log(CONTROL_PLANE, CONTROL).splitlines() if "nack" in line]
        assert "no-such-thing" in line
        assert lab.app("productpage", URL)["service"] == "reviews"
    finally:
        lab.serve(lambda world: world.update(before))
    wait_for("the end of it", lambda: not lab.discovery("productpage-v1")["LDS"]["nack"])


def test_a_killed_envoy_is_started_again(lab: Live) -> None:
    first = lab.admin("reviews", "/server_info")["uptime_all_epochs"]
    assert first.endswith("s")
    killed = lab.log("reviews").count("was terminated by SIGKILL")
    lab.run("reviews", "pkill", "-KILL", "-P", str(lab.program("reviews")["pid"]), uid=0)
    wait_for("the new Envoy", lambda: lab.run("client", "curl", "-sf", READY, check=False).returncode == 0)
    wait_for("traffic", lambda: lab.run("productpage", "curl", "-sf", URL, check=False).returncode == 0)
    assert lab.log("reviews").count("was terminated by SIGKILL") == killed + 1
    assert lab.program("reviews")["status"] is None, "the launcher itself went on"


def test_requests_in_flight_end_well_when_the_proxy_is_stopped(lab: Live) -> None:
    results: list[int] = []
    slow = f"{URL}?delay={DRAIN - 2:g}"
    threads = [
        threading.Thread(target=lambda: results.append(lab.run("productpage", "curl", "-sf", slow, check=False).returncode))
        for _ in range(5)
    ]
    begun = lab.stat("reviews", f"cluster.inbound|{APP_PORT}||reviews.default.svc.cluster.local.upstream_rq_total")
    for thread in threads:
        thread.start()
    name = f"cluster.inbound|{APP_PORT}||reviews.default.svc.cluster.local.upstream_rq_total"
    wait_for("the requests are in flight", lambda: lab.stat("reviews", name) == begun + len(threads))
    lab.send("reviews", signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert results == [0] * len(threads)
    wait_for("the proxy ends", lambda: lab.program("reviews")["status"] is not None)
    assert lab.program("reviews")["status"] == 0
    assert f"draining for at most {DRAIN:g} s" in lab.log("reviews")
    lab.start("reviews")
    wait_for("readiness", lambda: lab.run("client", "curl", "-sf", READY, check=False).returncode == 0)


def test_a_new_certificate_starts_the_next_epoch_and_no_request_fails(lab: Live, tmp_path: Path) -> None:
    authority = Authority.make()
    authority.issue(tmp_path, "default", "default")
    epoch = lab.admin("reviews", "/server_info")["command_line_options"]["restart_epoch"]
    with requests_all_the_time(lab) as results:
        for file in sorted(tmp_path.iterdir()):
            lab.run("reviews", "tee", f"{CERTIFICATES}/{file.name}", uid=0, stdin=file.read_text(encoding="ascii"))
        wait_for("the next epoch", lambda: now_epoch(lab) == epoch + 1)
        wait_for("the end of the former", lambda: f"epoch {epoch}, exited" in lab.log("reviews"))
        wait_for("some more requests", lambda: len(results) > 10)
    assert set(results) == {0}
    assert lab.app("productpage", URL)["service"] == "reviews"


def now_epoch(lab: Live) -> int:
    answer = lab.run("reviews", "curl", "-sf", f"{ADMIN}/server_info", check=False).stdout
    found = [line.partition(":")[2] for line in answer.splitlines() if '"restart_epoch"' in line]
    return int(found[0].strip(" ,")) if found else -1


@contextmanager
def requests_all_the_time(lab: Live) -> Iterator[list[int]]:
    """Send one request after the other for as long as the block runs, and collect curl's exit statuses."""
    results: list[int] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            results.append(lab.run("productpage", "curl", "-sf", "--max-time", "5", URL, check=False).returncode)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield results
    finally:
        ended.set()
        thread.join()


def test_mutual_tls_with_the_control_plane_works() -> None:
    with live(LabSettings(mutual_tls=True)) as made:
        assert made.app("productpage", URL)["service"] == "reviews"
        assert made.stat("productpage", "cluster.xds-grpc.ssl.handshake") > 0


def test_a_control_plane_with_the_wrong_identity_is_refused() -> None:
    with live(LabSettings(mutual_tls=True, control_plane_account="impostor", ready_timeout=0)) as made:
        wait_for("Envoy", lambda: made.run("reviews", "curl", "-s", ADMIN, check=False).returncode == 0)
        wait_for("the refusal", lambda: made.stat("reviews", "cluster.xds-grpc.ssl.fail_verify_san") > 0)
        assert "CDS or LDS" in made.run("client", "curl", "-s", READY).stdout
        assert made.discovery("reviews-v1") == {}


def test_a_lab_whose_proxies_do_not_get_ready_is_taken_down_and_says_why() -> None:
    for ready_timeout in (2, 8, 32):  # a loaded machine needs longer to start them at all
        settings = LabSettings(mutual_tls=True, control_plane_account="impostor", ready_timeout=ready_timeout)
        name = f"test-impostor-{ready_timeout}"
        with pytest.raises(IstioInitError, match="is not ready: ") as raised:
            Lab.up(name, settings, lambda _: None)
        with pytest.raises(IstioInitError, match=f"no lab '{name}' is up"):
            Lab.find(name)
        said = str(raised.value)
        if "not ready: waiting for the control plane" in said:
            break
    else:
        pytest.fail(said)
