"""What Envoy's administration is asked, what its answers mean, and what readiness makes of them.

The stand-in serves texts that an Envoy 1.40 gave, with listeners of both shapes.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.sidecar.launcher.admin import Admin, Unreachable
from istio_init.sidecar.launcher.readiness import Readiness, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json = dict[str, Any]

POD = "10.1.1.1"
CDS, LDS = "cluster_manager.cds", "listener_manager.lds"

STATS = """\
cluster_manager.cds.update_attempt: 2
cluster_manager.cds.update_rejected: 0
cluster_manager.cds.update_success: 1
cluster_manager.cds.version: 13237225503670494420
listener.0.0.0.0_15006.downstream_cx_active: 3
listener.0.0.0.0_15006.downstream_cx_total: 70
listener.0.0.0.0_15006.worker_0.downstream_cx_active: 1
listener.0.0.0.0_15006.worker_1.downstream_cx_active: 2
listener.0.0.0.0_15090.downstream_cx_active: 10
listener.0.0.0.0_15090.worker_0.downstream_cx_active: 10
listener.10.1.1.1_9080.downstream_cx_active: 5
listener.10.1.1.1_9080.worker_0.downstream_cx_active: 5
listener.[__]_15001.downstream_cx_active: 20
listener.[__]_15001.worker_1.downstream_cx_active: 20
listener.admin.downstream_cx_active: 1
listener.admin.main_thread.downstream_cx_active: 1
listener_manager.lds.update_attempt: 2
listener_manager.lds.update_rejected: 1
listener_manager.lds.update_success: 2
"""
NO_UPDATES = """\
cluster_manager.cds.update_rejected: 0
cluster_manager.cds.update_success: 0
listener_manager.lds.update_rejected: 0
listener_manager.lds.update_success: 0
"""
LIVE, INITIALIZING, NOT_THERE = (200, "LIVE\n"), (503, "PRE_INITIALIZING\n"), (404, "invalid path. admin commands are:\n")


def dynamic(name: str, address: str, port: int, **more: object) -> Json:
    listener = {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": name,
        "address": {"socket_address": {"address": address, "port_value": port}},
        **more,
    }
    return {
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener",
        "name": name,
        "active_state": {"version_info": "1", "listener": listener, "last_updated": "2026-11-23T01:57:17.167Z"},
    }


OF_ISTIO_1_0 = [
    dynamic("virtual", "0.0.0.0", 15001, use_original_dst=True),  # noqa: S104 - text of a listener
    dynamic("10.1.1.1_9080", POD, 9080, bind_to_port=False, filter_chains=[{"filters": []}]),
    dynamic("10.96.0.1_443", "10.96.0.1", 443, bind_to_port=False),
]
OF_TODAY = [
    dynamic("virtualOutbound", "0.0.0.0", 15001, traffic_direction="OUTBOUND", filter_chains=[{"filters": []}]),  # noqa: S104 - as above
    dynamic(
        "0.0.0.0_80",
        "0.0.0.0",  # noqa: S104 - as above
        80,
        traffic_direction="OUTBOUND",
        filter_chains=[{"filter_chain_match": {"destination_port": 81}}],
    ),
    dynamic(
        "virtualInbound",
        "0.0.0.0",  # noqa: S104 - as above
        15006,
        traffic_direction="INBOUND",
        filter_chains=[
            {"filter_chain_match": {"destination_port": 9081}, "name": "inbound|9081"},
            {"filter_chain_match": {"destination_port": 9082}, "name": "inbound|9082"},
            {"name": "rest"},
        ],
    ),
]
WARMING = {"name": "10.1.1.1_9083", "warming_state": dynamic("10.1.1.1_9083", POD, 9083)["active_state"]}


class StandIn:
    """What an Envoy's administration answers; a test changes it."""

    def __init__(self) -> None:
        self.stats = STATS
        self.listeners: list[Json] = []
        self.answers: dict[str, tuple[int, str]] = {"/ready": LIVE, "/drain_listeners": (200, "OK\n")}
        self.asked: list[str] = []
        self.admin = Admin(0)
        self.gate = threading.Event()  # answers come while it is set
        self.gate.set()

    def answer(self, method: str, target: str) -> tuple[int, str]:
        self.asked.append(f"{method} {target}")
        self.gate.wait(10)
        url = urlsplit(target)
        if url.path in self.answers:
            return self.answers[url.path]
        if url.path == "/stats":
            wanted = re.compile(parse_qs(url.query)["filter"][0])
            return 200, "".join(f"{line}\n" for line in self.stats.splitlines() if wanted.search(line.split(": ")[0]))
        if target == "/config_dump?resource=dynamic_listeners":
            return 200, json.dumps({"configs": self.listeners} if self.listeners else {}, indent=1)
        return NOT_THERE


def handler_of(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, text = stand_in.answer(self.command, self.path)
            self.send_response(status)
            self.send_header("Transfer-Encoding", "chunked")  # as Envoy does
            self.end_headers()
            body = text.encode()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
            pass

    return Handler


@pytest.fixture
def envoy() -> Iterator[StandIn]:
    stand_in = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(stand_in))
    stand_in.admin = Admin(server.server_port)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield stand_in
    stand_in.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# The administration.


def test_updates_that_were_taken_and_refused_are_counted(envoy: StandIn) -> None:
    assert envoy.admin.updates(CDS) == 1
    assert envoy.admin.updates(LDS) == 3
    assert envoy.asked[0] == r"GET /stats?filter=^cluster_manager.cds\.update_(success|rejected)$"


def test_without_an_update_there_is_none(envoy: StandIn) -> None:
    envoy.stats = NO_UPDATES
    assert (envoy.admin.updates(CDS), envoy.admin.updates(LDS)) == (0, 0)
    envoy.stats = ""
    assert envoy.admin.updates(CDS) == 0


def test_each_clients_connection_is_counted_once_and_readers_of_statistics_are_none(envoy: StandIn) -> None:
    assert envoy.admin.connections() == 3 + 5 + 20


def test_an_envoy_without_clients_has_no_connections(envoy: StandIn) -> None:
    envoy.stats = re.sub(r"(_15006|_9080|\]_15001)(.*): \d+", r"\1\2: 0", STATS)
    assert envoy.admin.connections() == 0
    envoy.stats = "listener.0.0.0.0_150901.downstream_cx_active: 1\nlistener.0.0.0.0_5090.downstream_cx_active: 1\n"
    assert envoy.admin.connections() == 2, "ports that only look like that of the statistics"


@pytest.mark.parametrize(
    ("listeners", "address", "ports"),
    [
        (OF_ISTIO_1_0, POD, {9080}),
        (OF_ISTIO_1_0, "10.1.1.2", set()),
        (OF_TODAY, POD, {9081, 9082}),
        ([*OF_ISTIO_1_0, *OF_TODAY, WARMING], POD, {9080, 9081, 9082}),
        ([dynamic("v6", "fd00::2", 9080)], "fd00::2", {9080}),
        ([], POD, set()),
    ],
    ids=["istio-1.0", "another pod's address", "today's", "both, and one that is warming", "ipv6", "none"],
)
def test_inbound_ports_are_those_of_listeners_that_serve_the_pod(
    listeners: list[Json], address: str, ports: set[int], envoy: StandIn
) -> None:
    envoy.listeners = listeners
    assert {port for port in envoy.admin.inbound_ports(address) if port} == ports


@pytest.mark.parametrize("answer", [INITIALIZING, (503, "INITIALIZING\n")])
def test_an_envoy_that_does_not_serve_yet_says_so(answer: tuple[int, str], envoy: StandIn) -> None:
    envoy.answers["/ready"] = answer
    assert envoy.admin.is_initializing()


@pytest.mark.parametrize("answer", [LIVE, (503, "DRAINING\n"), NOT_THERE])
def test_others_do_not_initialize(answer: tuple[int, str], envoy: StandIn) -> None:
    envoy.answers["/ready"] = answer
    assert not envoy.admin.is_initializing()


def test_an_envoy_that_does_not_answer_is_not_known_to_initialize() -> None:
    assert not Admin(free_port()).is_initializing()


def test_draining_is_graceful(envoy: StandIn) -> None:
    envoy.admin.drain()
    assert envoy.asked == ["POST /drain_listeners?graceful"]


def test_an_old_envoy_that_cannot_drain_listeners_fails_its_health_check(envoy: StandIn) -> None:
    envoy.answers = {"/drain_listeners": NOT_THERE, "/healthcheck/fail": (200, "OK\n")}
    envoy.admin.drain()
    assert envoy.asked == ["POST /drain_listeners?graceful", "POST /healthcheck/fail"]


QUESTIONS: dict[str, Callable[[Admin], object]] = {
    "updates": lambda admin: admin.updates(CDS),
    "connections": lambda admin: admin.connections(),
    "inbound_ports": lambda admin: admin.inbound_ports(POD),
    "drain": lambda admin: admin.drain(),
}
each_question = pytest.mark.parametrize("ask", QUESTIONS.values(), ids=list(QUESTIONS))


@each_question
def test_where_nobody_listens_envoy_is_unreachable(ask: Callable[[Admin], object]) -> None:
    with pytest.raises(Unreachable, match="Connection refused"):
        ask(Admin(free_port()))


@each_question
def test_an_answer_without_success_is_none(ask: Callable[[Admin], object], envoy: StandIn) -> None:
    envoy.answers = dict.fromkeys(("/stats", "/config_dump", "/drain_listeners", "/healthcheck/fail"), (500, "no"))
    with pytest.raises(Unreachable, match="status 500"):
        ask(envoy.admin)


@each_question
def test_an_envoy_that_hangs_is_unreachable(
    ask: Callable[[Admin], object], envoy: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("istio_init.sidecar.launcher.admin.REQUEST_TIMEOUT", 0.1)
    envoy.gate.clear()
    with pytest.raises(Unreachable, match="timed out"):
        ask(envoy.admin)


def test_what_speaks_no_http_is_unreachable() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def be_rude() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1024)
                client.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=be_rude, daemon=True).start()
        with pytest.raises(Unreachable):
            Admin(server.getsockname()[1]).connections()


# Readiness.


def test_an_envoy_with_updates_is_ready(envoy: StandIn) -> None:
    assert Readiness(envoy.admin, POD, ()).missing() == ""


@pytest.mark.parametrize(
    ("updated", "waits_for"),
    [((), "CDS or LDS"), ((CDS,), "LDS"), ((LDS,), "CDS")],
    ids=["none", "clusters only", "listeners only"],
)
def test_what_has_not_been_updated_yet_is_named(updated: tuple[str, ...], waits_for: str, envoy: StandIn) -> None:
    envoy.stats = NO_UPDATES
    for service in updated:
        envoy.stats = envoy.stats.replace(f"{service}.update_success: 0", f"{service}.update_success: 1")
    missing = Readiness(envoy.admin, POD, ()).missing()
    assert missing == f"waiting for the control plane: no {waits_for} update received yet"


def test_an_update_that_was_refused_is_an_update(envoy: StandIn) -> None:
    envoy.stats = NO_UPDATES.replace("rejected: 0", "rejected: 1")
    assert Readiness(envoy.admin, POD, ()).missing() == ""


@pytest.mark.parametrize(("listeners", "port"), [(OF_ISTIO_1_0, 9080), (OF_TODAY, 9082)], ids=["istio-1.0", "today's"])
def test_a_listener_for_one_of_the_apps_ports_is_enough(listeners: list[Json], port: int, envoy: StandIn) -> None:
    readiness = Readiness(envoy.admin, POD, (7, port))
    assert readiness.missing() == f"no inbound listener yet for any of ports 7, {port}"
    envoy.listeners = listeners
    assert readiness.missing() == ""


def test_listeners_for_other_ports_are_not(envoy: StandIn) -> None:
    envoy.listeners = OF_ISTIO_1_0 + OF_TODAY
    assert (
        Readiness(envoy.admin, POD, (80, 443, 15001)).missing() == "no inbound listener yet for any of ports 80, 443, 15001"
    )


def test_an_envoy_that_does_not_answer_is_not_ready() -> None:
    missing = Readiness(Admin(free_port()), POD, ()).missing()
    assert missing.startswith("Envoy's admin interface does not respond: ")
    assert "Connection refused" in missing


def test_another_program_on_envoys_port_is_not_ready(envoy: StandIn) -> None:
    envoy.answers["/stats"] = (200, "Welcome!\nToday: rain\n")
    assert "no CDS or LDS update" in Readiness(envoy.admin, POD, ()).missing()
    del envoy.answers["/stats"]
    envoy.answers["/config_dump"] = (200, "Welcome!")
    assert "does not respond" in Readiness(envoy.admin, POD, (9080,)).missing()


@contextmanager
def probes(readiness: Readiness) -> Iterator[int]:
    port = free_port()
    with serve(readiness, port):
        yield port


def probe(port: int, path: str = "/healthz/ready", host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    with closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_a_probe_is_told_when_envoy_is_ready_and_until_then_why_not(envoy: StandIn) -> None:
    envoy.stats = NO_UPDATES
    with probes(Readiness(envoy.admin, POD, ())) as port:
        assert probe(port) == (503, "waiting for the control plane: no CDS or LDS update received yet\n")
        envoy.stats = STATS
        assert probe(port) == (200, "ready\n")
        envoy.answers["/stats"] = (500, "")
        status, why = probe(port)
        assert status == 503
        assert "status 500" in why


def test_there_is_nothing_else_and_nothing_can_be_changed(envoy: StandIn) -> None:
    with probes(Readiness(envoy.admin, POD, ())) as port:
        for path in ("/", "/healthz", "/healthz/ready/", "/stats", "/quitquitquit"):
            assert probe(port, path)[0] == 404
        assert probe(port, method="POST")[0] == 501
    assert envoy.asked == []


def test_a_probe_that_waits_keeps_no_other_waiting(envoy: StandIn) -> None:
    with probes(Readiness(envoy.admin, POD, ())) as port:
        envoy.gate.clear()
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as first:
            first.sendall(b"GET /healthz/ready HTTP/1.0\r\n\r\n")
            assert probe(port, "/other")[0] == 404
            envoy.gate.set()
            assert first.recv(1024).startswith(b"HTTP/1.0 200 ")


def test_a_probe_comes_by_ipv6_too(envoy: StandIn) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with probes(Readiness(envoy.admin, POD, ())) as port:
        assert probe(port, host="::1") == (200, "ready\n")


def test_a_prober_that_has_gone_is_no_matter(envoy: StandIn, capfd: pytest.CaptureFixture[str]) -> None:
    with probes(Readiness(envoy.admin, POD, ())) as port:
        envoy.gate.clear()
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as gone:
            gone.sendall(b"GET /healthz/ready HTTP/1.0\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # so that close resets
        envoy.gate.set()
        assert probe(port) == (200, "ready\n")
    assert capfd.readouterr().err == ""


def test_readiness_can_be_off(envoy: StandIn) -> None:
    before = threading.active_count()
    with serve(Readiness(envoy.admin, POD, ()), 0):
        assert threading.active_count() == before


def test_a_port_that_is_taken_names_its_flag(envoy: StandIn) -> None:
    taken = envoy.admin.port
    with (
        pytest.raises(InvalidInput, match=rf"^--statusPort: cannot listen on {taken}: Address already in use"),
        serve(Readiness(envoy.admin, POD, ()), taken),
    ):
        pass


def test_the_port_is_free_after_the_end(envoy: StandIn) -> None:
    with probes(Readiness(envoy.admin, POD, ())) as port:
        assert probe(port)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        probe(port)
