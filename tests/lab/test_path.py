"""One request, from app to app through both Envoys, in each shape of listeners and each mode."""

from __future__ import annotations

import itertools
import json
import sys
from typing import TYPE_CHECKING

import pytest

from istio_init.lab.settings import APP_PORT, LabSettings, client_pod, control_pod, mesh_pods
from istio_init.lab.world import SHAPES
from istio_init.sidecar.bootstrap.settings import XDS_PORT
from tests.lab.live import Live, live, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

MODES = ("REDIRECT", "TPROXY")
# Layout, shape of the listeners, mode; rules of today with listeners of Istio 1.0 would capture on two ports, and serve one.
WAYS = [*itertools.product(("istio-1.0",), SHAPES, MODES), *itertools.product(("current",), ("current",), MODES)]
PRODUCTPAGE, REVIEWS = mesh_pods(LabSettings())
OUTBOUND = f"cluster.outbound|{APP_PORT}||reviews.default.svc.cluster.local.upstream_rq_completed"
INBOUND = {
    "istio-1.0": f"cluster.inbound|{APP_PORT}||reviews.default.svc.cluster.local.upstream_rq_completed",
    "current": f"cluster.inbound|{APP_PORT}||.upstream_rq_completed",
}


@pytest.fixture(scope="module", params=WAYS, ids=":".join)
def lab(request: pytest.FixtureRequest) -> Iterator[Live]:
    layout, shape, mode = request.param
    with live(LabSettings(layout=layout, shape=shape, interception=(("mode", mode),))) as made:
        yield made


@pytest.fixture(scope="module")
def expected_caller(lab: Live) -> str:
    """Give the address that an app sees of its proxy."""
    status = lab.lab.status()
    if "TPROXY" in status["rules"]:
        return PRODUCTPAGE.address
    return {"istio-1.0": "127.0.0.1", "current": "127.0.0.6"}[status["shape"]]


def test_a_request_passes_outbound_and_inbound_through_both_envoys(lab: Live, expected_caller: str) -> None:
    before = lab.stat("productpage", OUTBOUND), inbound(lab)
    answer = lab.app("productpage", f"http://reviews:{APP_PORT}/", "-H", "x-request-id: 1-2-3")
    after = lab.stat("productpage", OUTBOUND), inbound(lab)
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]
    assert answer["service"] == "reviews"
    assert answer["headers"]["x-request-id"] == "1-2-3"
    assert answer["caller"].rpartition(":")[0] == expected_caller
    for pod in ("productpage", "reviews"):
        wait_for("the access log, which Envoy flushes now and then", lambda pod=pod: "1-2-3" in lab.log(pod))  # type: ignore[misc]
        (line,) = [line for line in lab.log(pod).splitlines() if "1-2-3" in line]
        assert f"|{APP_PORT}||" in line


def test_one_app_calls_the_other(lab: Live) -> None:
    answer = lab.app("client", f"http://{PRODUCTPAGE.address}:{APP_PORT}/productpage")
    assert (answer["service"], answer["calls"]["service"]) == ("productpage", "reviews")
    assert answer["calls"]["headers"]["x-request-id"] == answer["headers"]["x-request-id"]


def test_a_connection_from_outside_the_mesh_is_captured(lab: Live) -> None:
    before = inbound(lab)
    answer = lab.app("client", f"http://{REVIEWS.address}:{APP_PORT}/")
    assert inbound(lab) == before + 1
    caller = answer["caller"].rpartition(":")[0]
    if "TPROXY" in lab.lab.status()["rules"]:
        assert caller == client_pod(LabSettings()).address
    else:
        assert caller.startswith("127.0.0.")


def test_what_no_service_has_passes_through_to_where_it_was_sent(lab: Live) -> None:
    name = "cluster.PassthroughCluster.upstream_cx_total"
    before = lab.stat("productpage", name)
    lab.curl("productpage", f"http://{control_pod(LabSettings()).address}:{XDS_PORT}/", check=False)  # it speaks gRPC only
    assert lab.stat("productpage", name) == before + 1


def test_envoy_reports_who_it_is(lab: Live) -> None:
    node = lab.admin("productpage", "/server_info")["node"]
    assert node["id"] == f"sidecar~{PRODUCTPAGE.address}~productpage-v1.default~default.svc.cluster.local"
    assert node["cluster"] == "productpage"
    metadata = {"POD_NAME": "productpage-v1", "app": "productpage", "version": "v1", "istio": "sidecar"}
    assert node["metadata"].items() >= metadata.items()
    dumped = lab.admin("productpage", "/config_dump?mask=bootstrap.node")["configs"][0]["bootstrap"]["node"]
    assert (dumped["id"], dumped["metadata"]) == (node["id"], node["metadata"])


def test_the_administration_is_only_reachable_from_inside_the_pod(lab: Live) -> None:
    assert lab.admin("reviews", "/server_info")["state"] == "LIVE"
    refused = lab.run("client", "curl", "-sS", "--max-time", "5", f"http://{REVIEWS.address}:15000/server_info", check=False)
    assert refused.returncode in (7, 52, 56), "refused; with all ports captured: nothing comes back"


def test_statistics_are_readable_from_outside_the_pod(lab: Live) -> None:
    text = lab.curl("client", f"http://{REVIEWS.address}:15090/stats/prometheus")
    assert "envoy_server_live" in text


def test_every_type_of_resource_is_taken(lab: Live) -> None:
    for pod in ("productpage-v1", "reviews-v1"):
        types = lab.discovery(pod)
        assert {"CDS", "EDS", "LDS", "RDS"} <= set(types)
        assert [how["nack"] for how in types.values()] == [None] * len(types)
        assert all(how["acked"] == how["sent"] for how in types.values())


def test_the_rules_are_those_that_istio_init_applied(lab: Live) -> None:
    again = lab.run("reviews", *istio_init(lab, "--log-format", "json"), uid=0)
    assert "already in place" in json.loads(again.stderr.splitlines()[-1])["message"]


def inbound(lab: Live) -> int:
    """Count the requests that the reviews' Envoy has handed to its app."""
    return lab.stat("reviews", INBOUND[lab.lab.status()["shape"]])


def istio_init(lab: Live, *flags: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "istio_init", *lab.lab.status()["rules"], *flags)
