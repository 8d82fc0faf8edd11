"""The control plane of the lab, as its clients see it: the protocol with a client of our own, and then the real Envoy."""

from __future__ import annotations

import http.client
import json
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from istio_init.lab.ads import version
from istio_init.lab.certificates import Authority
from istio_init.lab.messages import CLASSES
from istio_init.lab.resources import Kind, resources
from istio_init.lab.world import SHAPES, Extra, LabPod, Service, World
from istio_init.sidecar.bootstrap import render_bootstrap
from istio_init.sidecar.bootstrap.common import CERTIFICATES
from istio_init.sidecar.bootstrap.settings import parse_proxy_settings
from tests.netns.namespaces import NSENTER, Namespace
from tests.privileges import give_up, need_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

LOCALHOST = "127.0.0.1"
TIMEOUT = 30.0  # seconds
ENVOY = Path(sys.executable).with_name("envoy")
NODE = "sidecar~10.77.0.2~reviews-v1.default~default.svc.cluster.local"
STRANGER = "sidecar~10.77.0.99~x.default~default.svc.cluster.local"
REVIEWS = "outbound|9080||reviews.default.svc.cluster.local"
RATINGS = "outbound|9080||ratings.default.svc.cluster.local"
EVERYTHING = {Kind.CDS: (), Kind.EDS: (REVIEWS, RATINGS), Kind.LDS: (), Kind.RDS: ("9080",)}


def world(shape: str = "istio-1.0", mode: str = "REDIRECT", *, port: int = 9080, extra: Extra = Extra()) -> World:  # noqa: B008 - immutable
    """Make a world.

    Args:
        port: of the app of ratings; it is in that service's endpoints only.
    """
    services = (
        Service("reviews", "default", ("10.96.0.10",), 9080, ("reviews-v1",)),
        Service("ratings", "default", ("10.96.0.11",), 9080, ("ratings-v1",)),
    )
    pods = (
        LabPod("reviews-v1", "default", ("10.77.0.2",), mode, 9080, "reviews"),
        LabPod("ratings-v1", "default", ("10.77.0.3",), mode, port, "ratings"),
    )
    return World(shape, services, pods, extra)


def eventually(get: Callable[[], T], wanted: Callable[[T], bool], tell: Callable[[], object] = lambda: "") -> T:
    """Ask until the answer is the wanted one."""
    deadline = time.monotonic() + TIMEOUT
    while not wanted(got := get()):
        assert time.monotonic() < deadline, f"still {got!r} {tell()}"
        time.sleep(0.02)
    return got


def becomes(get: Callable[[], T], value: T, tell: Callable[[], object] = lambda: "") -> None:
    """Ask until the answer is a value."""
    eventually(get, lambda got: got == value, tell)


class Plane:
    """A control plane that runs."""

    def __init__(self, program: subprocess.Popen[str], directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.program.stdout is not None
        for line in self.program.stdout:
            self.lines.append(line.rstrip("\n"))

    def port(self, name: str = "port") -> int:
        (line,) = self.wait_for("listening ")
        return int(dict(word.split("=") for word in line.split()[1:])[name])

    def wait_for(self, start: str, count: int = 1) -> list[str]:
        """Wait for lines of the log."""
        return eventually(lambda: self.logged(start), lambda found: len(found) >= count, lambda: self.lines)

    def logged(self, start: str) -> list[str]:
        return [line for line in self.lines if line.startswith(start)]

    def serve(self, changed: World | str) -> None:
        text = changed if isinstance(changed, str) else changed.to_json()
        temporary = self.directory / "next.json"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.directory / "world.json")

    def status(self) -> Any:
        return json.loads((self.directory / "status.json").read_text(encoding="utf-8"))

    def stop(self) -> int:
        self.program.send_signal(signal.SIGTERM)
        status = self.program.wait(TIMEOUT)
        self._reader.join()
        return status


@contextmanager
def control_plane(directory: Path, served: World | None, *words: str, prefix: tuple[str, ...] = ()) -> Iterator[Plane]:
    if served:
        (directory / "world.json").write_text(served.to_json(), encoding="utf-8")
    files = ("--world", str(directory / "world.json"), "--status", str(directory / "status.json"))
    ports = ("--address", LOCALHOST, "--port", "0", "--tls-port", "0")
    argv = (*prefix, sys.executable, "-m", "istio_init.lab.control_plane", *files, *ports, *words)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        plane = Plane(program, directory)
        try:
            plane.wait_for("listening ")
            yield plane
        finally:
            if program.poll() is None:
                assert plane.stop() == 0


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    with control_plane(tmp_path, world()) as running:
        yield running


class Client:
    """One ADS stream, as an Envoy has it."""

    def __init__(self, channel: grpc.Channel, node: str = NODE) -> None:
        self._node = node
        self._requests: queue.Queue[DiscoveryRequest | None] = queue.Queue()
        self.call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources(
            iter(self._requests.get, None), timeout=2 * TIMEOUT
        )

    def ask(
        self, kind: Kind, *names: str, answer: DiscoveryResponse | None = None, error: str = "", version: str | None = None
    ) -> None:
        """Send a request; about an answer, it is an ACK, or with an error a NACK."""
        request = DiscoveryRequest(type_url=kind.type_url, resource_names=names)
        request.node.id, self._node = self._node, ""  # only the first message carries it
        if answer is not None:
            request.response_nonce = answer.nonce
            request.version_info = answer.version_info
        if version is not None:
            request.version_info = version
        if error:
            request.error_detail.message = error
        self.send(request)

    def send(self, request: DiscoveryRequest) -> None:
        self._requests.put(request)

    def answer(self) -> DiscoveryResponse:
        return next(self.call)

    def get(self, kind: Kind, *names: str) -> DiscoveryResponse:
        """Ask for resources, and take what comes."""
        self.ask(kind, *names)
        answer = self.answer()
        self.ask(kind, *names, answer=answer)
        return answer

    def close(self) -> None:
        self._requests.put(None)
        self.call.cancel()


@contextmanager
def client(plane: Plane, node: str = NODE) -> Iterator[Client]:
    with grpc.insecure_channel(f"{LOCALHOST}:{plane.port()}") as channel:
        connected = Client(channel, node)
        try:
            yield connected
        finally:
            connected.close()


def read(answer: DiscoveryResponse) -> list[Any]:
    """Give the resources of an answer as messages."""
    kind = kind_of(answer)
    assert [packed.type_url for packed in answer.resources] == [kind.type_url] * len(answer.resources)
    return [CLASSES[kind].FromString(packed.value) for packed in answer.resources]


def kind_of(answer: DiscoveryResponse) -> Kind:
    return next(kind for kind in Kind if kind.type_url == answer.type_url)


def names(answer: DiscoveryResponse) -> list[str]:
    return [one.cluster_name if kind_of(answer) is Kind.EDS else one.name for one in read(answer)]


def ports_of(answer: DiscoveryResponse) -> set[int]:
    """List the ports of an EDS answer's endpoints."""
    groups = [group for one in read(answer) for group in one.endpoints]
    return {endpoint.endpoint.address.socket_address.port_value for group in groups for endpoint in group.lb_endpoints}


def test_the_first_request_of_each_kind_is_answered(plane: Plane) -> None:
    with client(plane) as asked:
        assert {REVIEWS, RATINGS, "PassthroughCluster"} < set(names(asked.get(Kind.CDS)))
        assert names(asked.get(Kind.EDS, REVIEWS)) == [REVIEWS]
        assert "virtual" in names(asked.get(Kind.LDS))
        assert names(asked.get(Kind.RDS, "9080")) == ["9080"]


def test_what_was_sent_and_taken_is_in_the_log_and_in_the_status(plane: Plane) -> None:
    assert plane.status() == {}
    with client(plane) as asked:
        answer = asked.get(Kind.LDS)
        version, nonce = answer.version_info, answer.nonce
        (acked,) = plane.wait_for("ads ack ")
        assert plane.logged("ads connected") == [f"ads connected node={NODE}"]
        assert plane.logged("ads push") == [f"ads push type=LDS version={version} nonce={nonce} resources=3 node={NODE}"]
        assert acked == f"ads ack type=LDS version={version} nonce={nonce} node={NODE}"
        becomes(plane.status, {NODE: {"LDS": {"sent": version, "acked": version, "nack": None}}})
    assert plane.wait_for("ads disconnected") == [f"ads disconnected node={NODE}"]
    becomes(plane.status, {})


def test_a_refusal_is_kept_and_the_same_is_not_sent_again(plane: Plane) -> None:
    with client(plane) as asked:
        asked.ask(Kind.LDS)
        refused = asked.answer()
        asked.ask(Kind.LDS, answer=refused, version="", error='no "such"\nfilter')
        assert kind_of(asked.get(Kind.CDS)) is Kind.CDS, "an answer to the refusal would have come first"
        (line,) = plane.wait_for("ads nack")
        message = r'"no \"such\"\nfilter"'
        assert line == f"ads nack type=LDS version={refused.version_info} node={NODE} message={message}"
        state = plane.status()[NODE]["LDS"]
        assert state == {"sent": refused.version_info, "acked": None, "nack": 'no "such"\nfilter'}


def test_after_a_refusal_the_next_change_is_sent_and_clears_it(plane: Plane) -> None:
    with client(plane) as asked:
        first = asked.get(Kind.EDS, RATINGS)
        plane.serve(world(port=9081))
        refused = asked.answer()
        asked.ask(Kind.EDS, RATINGS, answer=refused, version=first.version_info, error="no")
        state = {"sent": refused.version_info, "acked": first.version_info, "nack": "no"}
        becomes(plane.status, {NODE: {"EDS": state}})
        plane.serve(world(port=9082))
        taken = asked.answer()
        asked.ask(Kind.EDS, RATINGS, answer=taken)
        state = {"sent": taken.version_info, "acked": taken.version_info, "nack": None}
        becomes(plane.status, {NODE: {"EDS": state}})


def test_other_names_after_a_refusal_do_not_make_it_an_ack(plane: Plane) -> None:
    with client(plane) as asked:
        asked.ask(Kind.EDS, REVIEWS)
        refused = asked.answer()
        asked.ask(Kind.EDS, REVIEWS, answer=refused, version="", error="no")
        asked.ask(Kind.EDS, REVIEWS, RATINGS, answer=refused, version="")
        assert names(asked.answer()) == [REVIEWS, RATINGS]
        assert plane.logged("ads ack") == []
        assert plane.status()[NODE]["EDS"]["acked"] is None


def test_a_stale_request_is_ignored(plane: Plane) -> None:
    with client(plane) as asked:
        first = asked.get(Kind.EDS, REVIEWS)
        asked.ask(Kind.EDS, REVIEWS, RATINGS, answer=first)
        second = asked.answer()
        asked.ask(Kind.EDS, REVIEWS, answer=first, error="of an answer that is gone")
        assert kind_of(asked.get(Kind.CDS)) is Kind.CDS
        assert plane.wait_for("ads stale") == [f"ads stale type=EDS nonce={first.nonce} node={NODE}"]
        assert plane.logged("ads nack") == []
        asked.ask(Kind.EDS, REVIEWS, RATINGS, answer=second)
        becomes(lambda: plane.status()[NODE]["EDS"]["acked"], second.version_info)


@pytest.mark.parametrize(("kind", "before", "after"), [(Kind.EDS, REVIEWS, RATINGS), (Kind.RDS, "none", "9080")])
def test_other_names_are_answered_and_the_same_ones_are_not(plane: Plane, kind: Kind, before: str, after: str) -> None:
    with client(plane) as asked:
        first = asked.get(kind, before)
        asked.ask(kind, before, answer=first)
        asked.ask(kind, before, after, answer=first)
        second = asked.answer()
        assert set(names(second)) - set(names(first)) == {after}
        asked.ask(kind, answer=second)  # wants none any more
        assert kind_of(asked.get(Kind.LDS)) is Kind.LDS


def test_other_names_may_come_before_the_answer_to_the_first(plane: Plane) -> None:
    with client(plane) as asked:
        asked.ask(Kind.EDS, REVIEWS)
        asked.ask(Kind.EDS, REVIEWS, RATINGS)
        assert [names(asked.answer()) for _ in range(2)] == [[REVIEWS], [REVIEWS, RATINGS]]


def test_a_change_is_pushed_and_only_where_something_changed(plane: Plane) -> None:
    with client(plane) as asked:
        before = {kind: asked.get(kind, *wanted) for kind, wanted in EVERYTHING.items()}
        plane.serve(world(port=9081))
        pushed = asked.answer()
        assert kind_of(pushed) is Kind.EDS
        assert ports_of(before[Kind.EDS]) == {9080}
        assert ports_of(pushed) == {9080, 9081}
        asked.ask(Kind.EDS, *EVERYTHING[Kind.EDS], answer=pushed)
        becomes(lambda: plane.status()[NODE]["EDS"]["acked"], pushed.version_info)
        assert plane.logged("world loaded") == ["world loaded services=2 pods=2"]
        assert len(plane.logged("ads push")) == 5


def test_changes_come_clusters_first_then_endpoints_listeners_routes(plane: Plane) -> None:
    with client(plane) as asked:
        for kind in reversed(Kind):
            asked.get(kind, *EVERYTHING[kind])
        changed = world()
        plane.serve(changed._replace(services=(*changed.services, Service("more", "default", ("10.96.0.12",), 80, ()))))
        pushed = [asked.answer() for _ in range(4)]
        assert [kind_of(answer) for answer in pushed] == list(Kind)
        assert "outbound|80||more.default.svc.cluster.local" in names(pushed[0])
        assert "0.0.0.0_80" in names(pushed[2])


@pytest.mark.parametrize(
    ("extra", "kinds"),
    [
        (Extra(clusters=({"name": "mine"},)), [Kind.CDS, Kind.EDS]),
        (Extra(listeners=({"name": "mine"},)), [Kind.LDS, Kind.RDS]),
    ],
    ids=["clusters", "listeners"],
)
def test_what_completes_a_change_is_sent_again(plane: Plane, extra: Extra, kinds: list[Kind]) -> None:
    with client(plane) as asked:
        before = {kind: asked.get(kind, *wanted) for kind, wanted in EVERYTHING.items()}
        plane.serve(world(extra=extra))
        pushed = [asked.answer() for _ in kinds]
        assert [kind_of(answer) for answer in pushed] == kinds
        assert pushed[0].version_info != before[kinds[0]].version_info
        assert pushed[1].version_info == before[kinds[1]].version_info


def test_a_world_that_cannot_be_read_changes_nothing(plane: Plane) -> None:
    with client(plane) as asked:
        asked.get(Kind.EDS, RATINGS)
        plane.serve("{")
        (refused,) = plane.wait_for("world rejected")
        assert "not valid JSON" in refused
        plane.serve(world(extra=Extra(clusters=({"name": "mine", "colour": "red"},))))
        assert "colour" in plane.wait_for("world rejected", 2)[1]
        (plane.directory / "world.json").unlink()
        assert "No such file" in plane.wait_for("world rejected", 3)[2]
        plane.serve(world(port=9081))
        assert ports_of(asked.answer()) == {9081}, "nothing was sent for the worlds before"


def test_a_stranger_gets_outbound_only(plane: Plane) -> None:
    with client(plane, STRANGER) as asked:
        assert names(asked.get(Kind.LDS)) == ["virtual", "0.0.0.0_9080"]
        clusters = names(asked.get(Kind.CDS))
        assert REVIEWS in clusters
        assert [name for name in clusters if name.startswith(("inbound", "Inbound"))] == []


def test_everybody_gets_a_persons_own_resources(plane: Plane) -> None:
    plane.serve(world(extra=Extra(endpoints=({"cluster_name": "mine"},), clusters=({"name": "mine"},))))
    plane.wait_for("world loaded")
    for node in (NODE, STRANGER):
        with client(plane, node) as asked:
            assert "mine" in names(asked.get(Kind.CDS))
            assert names(asked.get(Kind.EDS, "mine")) == ["mine"]


def test_an_unknown_kind_is_logged_and_the_stream_goes_on(plane: Plane) -> None:
    with client(plane) as asked:
        asked.get(Kind.CDS)
        asked.send(DiscoveryRequest(type_url="type.googleapis.com/no.such.Kind"))
        assert kind_of(asked.get(Kind.LDS)) is Kind.LDS
        expected = f"ads unsupported type=type.googleapis.com/no.such.Kind node={NODE}"
        assert plane.wait_for("ads unsupported") == [expected]


def test_a_proxy_without_a_name_is_refused(plane: Plane) -> None:
    with client(plane, node="") as asked:
        asked.ask(Kind.CDS)
        with pytest.raises(grpc.RpcError) as raised:
            asked.answer()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert plane.logged("ads connected") == []


def test_a_version_outlives_the_control_plane_and_a_proxy_that_comes_back_is_answered(tmp_path: Path) -> None:
    with control_plane(tmp_path, world()) as plane, client(plane) as asked:
        before = asked.get(Kind.EDS, REVIEWS)
        assert plane.stop() == 0
        assert list(asked.call) == [], "the stream ends without an error"
    with control_plane(tmp_path, None) as plane, client(plane) as asked:
        # What is said of the earlier stream's answer is neither stale nor an ACK.
        asked.ask(Kind.EDS, REVIEWS, answer=before)
        after = asked.answer()
        assert after.version_info == before.version_info
        assert plane.status()[NODE]["EDS"]["acked"] is None
        asked.ask(Kind.EDS, REVIEWS, answer=after)
        becomes(lambda: plane.status()[NODE]["EDS"]["acked"], before.version_info)
        assert plane.logged("ads stale") == []


def test_the_old_stream_of_a_proxy_that_came_back_takes_nothing_with_it(plane: Plane) -> None:
    with client(plane) as after:
        with client(plane) as before:
            before.get(Kind.CDS)
            after.get(Kind.LDS)
        plane.wait_for("ads disconnected")
        assert list(plane.status()[NODE]) == ["LDS"]


@pytest.mark.parametrize("content", ["{", None])
def test_without_a_world_it_does_not_start(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "world.json").write_text(content, encoding="utf-8")
    done = start(tmp_path, "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "world.json" in done.stderr


def test_a_port_that_is_taken_is_an_error(plane: Plane) -> None:
    done = start(plane.directory, "--address", LOCALHOST, "--port", str(plane.port()))
    assert done.returncode == 2
    assert "error: --port: " in done.stderr


def start(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    files = ("--world", str(directory / "world.json"), "--status", str(directory / "other.json"))
    argv = [sys.executable, "-m", "istio_init.lab.control_plane", *files, *words]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=TIMEOUT)


def test_with_certificates_it_talks_to_those_alone_who_have_one_too(tmp_path: Path) -> None:
    authority, stranger = Authority.make(), Authority.make()
    for name, issuer in (("pilot", authority), ("proxy", authority), ("stranger", stranger)):
        (tmp_path / name).mkdir()
        issuer.issue(tmp_path / name, "default", name)
    with control_plane(tmp_path, world(), "--certificates", str(tmp_path / "pilot")) as plane:
        port = plane.port("tls_port")
        greeted = {name: greeting(port, tmp_path / name) for name in ("proxy", "stranger", "")}
    assert greeted == {"proxy": True, "stranger": False, "": False}


def greeting(port: int, certificates: Path) -> bool:
    """Connect, and tell whether a server of HTTP/2 greets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if certificates.name in ("proxy", "stranger"):
        context.load_cert_chain(certificates / "cert-chain.pem", certificates / "key.pem")
    with (
        socket.create_connection((LOCALHOST, port), timeout=TIMEOUT) as plain,
        context.wrap_socket(plain) as connection,
    ):
        try:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            frame = connection.recv(9)
        except OSError:  # the alert comes after the handshake of TLS 1.3
            return False
    return frame[3:4] == b"\x04"  # SETTINGS (RFC 9113, 6.5)


class Lab(NamedTuple):
    """A real Envoy and its control plane, in a network namespace of their own."""

    plane: Plane
    envoy: subprocess.Popen[bytes]
    namespace: Namespace
    log: Path

    def takes(self, served: World) -> None:
        """Wait until Envoy has taken all of a world."""
        versions = {kind: version(listed) for kind, listed in resources(served, served.proxy(NODE)).items()}
        wanted = {kind: {"sent": one, "acked": one, "nack": None} for kind, one in versions.items()}
        becomes(lambda: self.plane.status().get(NODE), wanted, self.tell)

    def admin(self, path: str) -> str:
        def get() -> str:
            connection = http.client.HTTPConnection(LOCALHOST, 15000, timeout=TIMEOUT)
            try:
                connection.request("GET", path)
                return connection.getresponse().read().decode()
            finally:
                connection.close()

        return self.namespace.call(get)

    def tell(self) -> str:
        return "\n".join([*self.plane.lines, self.log.read_text(encoding="utf-8")])


@contextmanager
def lab(directory: Path, served: World, *, mutual_tls: bool = False) -> Iterator[Lab]:
    need_namespaces()
    if not ENVOY.exists():
        give_up("the real Envoy (extra `lab`) is not installed")
    certificates = directory / "certs"
    certificates.mkdir()
    Authority.make().issue(certificates, "istio-system", "istio-pilot-service-account")
    with ExitStack() as stack:
        namespace = Namespace()
        stack.callback(namespace.close)
        namespace.run("ip", "link", "set", "lo", "up")
        inside = (NSENTER, f"--net={namespace.path}")
        words = ("--certificates", str(certificates)) if mutual_tls else ()
        plane = stack.enter_context(control_plane(directory, served, *words, prefix=inside))
        bootstrap, log = directory / "envoy.json", directory / "envoy.log"
        port = plane.port("tls_port" if mutual_tls else "port")
        text = bootstrap_for(port, mutual_tls=mutual_tls).replace(CERTIFICATES, str(certificates))
        bootstrap.write_text(text, encoding="utf-8")
        argv = (*inside, str(ENVOY), "-c", str(bootstrap), "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
        with log.open("wb") as output:
            envoy = stack.enter_context(subprocess.Popen(argv, stdout=output, stderr=output))
        stack.callback(envoy.kill)
        yield Lab(plane, envoy, namespace, log)


def bootstrap_for(port: int, *, mutual_tls: bool) -> str:
    flags = {
        "ip": "10.77.0.2",
        "discoveryAddress": f"{LOCALHOST}:15007",
        "discoveryGrpcPort": str(port),
        "controlPlaneAuthPolicy": "MUTUAL_TLS" if mutual_tls else "NONE",
    }
    return render_bootstrap(
        parse_proxy_settings("sidecar", flags, {"POD_NAME": "reviews-v1", "POD_NAMESPACE": "default"}, "")
    )


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
@pytest.mark.parametrize(("shape", "listeners"), [("istio-1.0", {15001}), ("current", {15001, 15006})])
def test_envoy_takes_all_that_it_is_told(tmp_path: Path, shape: str, listeners: set[int], mode: str) -> None:
    with lab(tmp_path, world(shape, mode)) as running:
        running.takes(world(shape, mode))
        bound = eventually(lambda: listening(running.namespace), lambda found: found >= listeners, running.tell)
        assert bound & {15001, 15006, 9080} == listeners
        assert "LIVE" in eventually(lambda: running.admin("/server_info"), lambda text: "LIVE" in text, running.tell)


def listening(namespace: Namespace) -> set[int]:
    lines = namespace.run("ss", "-Hltn").stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def test_envoy_refuses_a_bad_resource_and_takes_the_rest(tmp_path: Path) -> None:
    bad = Extra(listeners=({"name": "mine"},))
    with lab(tmp_path, world(extra=bad)) as running:
        status = eventually(
            running.plane.status, lambda status: status.get(NODE, {}).get("LDS", {}).get("nack"), running.tell
        )
        assert "mine" in status[NODE]["LDS"]["nack"]
        assert status[NODE]["CDS"]["nack"] is None
        pushes = [line for line in running.plane.logged("ads push") if "type=LDS" in line]
        assert len(pushes) == 1
        running.plane.serve(world())
        running.takes(world())


@pytest.mark.parametrize("shape", SHAPES)
def test_envoy_takes_changes_one_after_the_other(tmp_path: Path, shape: str) -> None:
    with lab(tmp_path, world(shape)) as running:
        running.takes(world(shape))
        for changed in (world(shape, port=9081), elsewhere(world(shape)), world(shape, "TPROXY"), world(shape)):
            running.plane.serve(changed)
            running.takes(changed)
            wanted = {f"{pod.addresses[0]}:{pod.port}" for pod in changed.pods}
            becomes(lambda: endpoints(running), wanted, running.tell)
        becomes(lambda: warming(running), {0}, running.tell)


def warming(running: Lab) -> set[int]:
    """Tell how many clusters and listeners still wait for something."""
    lines = [line for line in running.admin("/stats").splitlines() if "_warming: " in line or "warming_clusters: " in line]
    return {int(line.rpartition(": ")[2]) for line in lines}


def elsewhere(of: World) -> World:
    """Move the app of the pod that Envoy stands in front of: its clusters and listeners change."""
    return of._replace(pods=(of.pods[0]._replace(port=8080), *of.pods[1:]))


def endpoints(running: Lab) -> set[str]:
    """List where Envoy finds the pods of services."""
    lines = [line.split("::") for line in running.admin("/clusters").splitlines() if line.startswith("outbound|")]
    return {line[1] for line in lines if line[1][0].isdigit()}


def test_envoy_and_control_plane_prove_to_each_other_who_they_are(tmp_path: Path) -> None:
    with lab(tmp_path, world(), mutual_tls=True) as running:
        running.takes(world())


def test_envoy_comes_back_after_its_control_plane_went_away(tmp_path: Path) -> None:
    with lab(tmp_path, world()) as running:
        running.takes(world())
        port = running.plane.port()
        assert running.plane.stop() == 0
        inside = (NSENTER, f"--net={running.namespace.path}")
        with control_plane(tmp_path, None, "--port", str(port), prefix=inside) as plane:
            running._replace(plane=plane).takes(world())
            assert plane.logged("ads nack") + plane.logged("ads stale") == []
