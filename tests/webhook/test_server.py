"""The server over real HTTPS: right answers, wrong requests, and its end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
from contextlib import closing
from typing import TYPE_CHECKING

import aiohttp
import pytest

from istio_init.kubernetes.webhook.bodies import MAX_BODY
from tests.webhook.live import ADDRESS, TIMEOUT, Certificates, Webhook, ask, eventually, stand_in_arguments
from tests.webhook.reviews import POD, UID, bare_pod, encoded, patched, pod, review
from tests.webhook.test_review import BAD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GOOD = encoded(review(POD))
TOO_LARGE = MAX_BODY + 1


def still_serves(webhook: Webhook) -> None:
    assert webhook.review(review(POD))["response"]["uid"] == UID
    assert webhook.status("/healthz/ready").status == 200


# Right answers.


def test_a_review_is_answered_over_https_and_many_over_one_connection(stand_in: Webhook) -> None:
    connection = stand_in.connect()
    for number in range(5):
        answered = ask(connection, encoded(review(bare_pod(f"pod-{number}"), uid=f"uid-{number}"))).json()
        assert answered["response"]["uid"] == f"uid-{number}"
        changed = patched(bare_pod(f"pod-{number}"), answered)
        assert changed["spec"]["containers"][-1]["image"] == f"bookinfo/pod-{number}"
    connection.close()


def test_an_answer_says_that_it_is_json(stand_in: Webhook) -> None:
    connection = stand_in.connect()
    connection.request(
        "POST", "/inject?timeout=10s", GOOD, {"Content-Type": "application/json; charset=utf-8"}
    )  # as API servers do
    reply = connection.getresponse()
    assert (reply.status, reply.headers.get_content_type()) == (200, "application/json")
    reply.read()
    connection.close()


def test_a_denied_pod_and_one_left_alone_are_answers_too(stand_in: Webhook) -> None:
    denied = stand_in.review(review(pod(test="denied")))["response"]
    assert (denied["allowed"], denied["status"]["code"]) == (False, 422)
    alone = stand_in.review(review(pod(test="alone")))["response"]
    assert alone["allowed"] is True
    assert alone["warnings"]


@pytest.mark.parametrize("size", [1_000_000, MAX_BODY - 100_000])
def test_a_large_pod_is_injected(size: int, stand_in: Webhook) -> None:
    large = pod(large="x" * size)
    assert patched(large, stand_in.review(review(large)))["spec"]["containers"][-1]["name"] == "stand-in"


def test_a_client_that_does_not_trust_the_certificate_gets_nothing_and_harms_nothing(stand_in: Webhook) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        stand_in._replace(trust=ssl.create_default_context()).connect()
    still_serves(stand_in)


def test_old_versions_of_tls_are_refused(stand_in: Webhook) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1 "):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 "):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|EOF"):
        stand_in._replace(trust=old).connect()


# Wrong requests.


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=list(BAD))
def test_a_malformed_body_is_400_with_its_reason(body: bytes, message: str, shared: Webhook) -> None:
    reply = shared.post(body)
    assert reply.status == 400
    assert message in reply.text
    assert reply.text.startswith("istio-init: ")
    assert reply.text.count("\n") == 1
    still_serves(shared)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (404, {"path": "/"}),
        (404, {"path": "/metrics"}),
        (405, {"method": "GET"}),
        (405, {"method": "PUT"}),
        (415, {"headers": {"Content-Type": "application/yaml"}}),
        (415, {"headers": {}}),
        (415, {"headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"}}),
    ],
)
def test_another_request_is_refused(status: int, request_: dict[str, str], shared: Webhook) -> None:
    assert shared.post(GOOD, **request_).status == status  # type: ignore[arg-type] # each is of its parameter's type
    still_serves(shared)


def test_an_oversized_body_is_413(shared: Webhook) -> None:
    before = shared.metric('istio_init_webhook_reviews_total{outcome="too_large"}')
    assert shared.post(b" " * TOO_LARGE).status == 413
    assert shared.metric('istio_init_webhook_reviews_total{outcome="too_large"}') == before + 1
    still_serves(shared)


def test_a_body_that_is_announced_too_large_is_413_before_it_comes(shared: Webhook) -> None:
    assert sent(shared, b"Content-Length: 99999999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    still_serves(shared)


def test_a_body_in_chunks_is_413_once_it_is_too_large(shared: Webhook) -> None:
    connection = shared.connect()
    chunk = b" " * 65536
    chunks = (chunk for _ in range(TOO_LARGE // len(chunk) + 1))
    connection.request("POST", "/inject", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    still_serves(shared)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: ten\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
        b"Bad\x00Header: 1\r\n\r\n",
        b"X: " + b"x" * 10_000 + b"\r\n\r\n",  # one record of TLS, which is read whole before it is refused
    ],
    ids=["length in words", "negative length", "chunks", "header", "long header"],
)
def test_malformed_http_is_400(rest: bytes, shared: Webhook) -> None:
    assert sent(shared, rest).startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    still_serves(shared)


def sent(webhook: Webhook, rest: bytes) -> bytes:
    """Send a request whose head is written by hand, and give what comes first."""
    with closing(webhook.connect()) as connection:
        connection.sock.sendall(b"POST /inject HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\n" + rest)
        return bytes(connection.sock.recv(65536))


@pytest.mark.parametrize(
    "message",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 2000, b"\x16\x03\x01"],
    ids=["nothing", "plain HTTP", "garbage", "half a greeting"],
)
def test_a_client_that_speaks_no_tls_harms_nothing(message: bytes, shared: Webhook) -> None:
    with socket.create_connection((ADDRESS, shared.port), TIMEOUT) as connection:
        connection.sendall(message)
    still_serves(shared)


@pytest.mark.parametrize("part", [10, len(GOOD) - 1])
def test_a_client_that_goes_away_in_the_middle_harms_nothing(part: int, shared: Webhook) -> None:
    refused = 'istio_init_webhook_reviews_total{outcome="bad_request"}'
    before = shared.metric(refused)
    connection = shared.connect()
    connection.putrequest("POST", "/inject")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(GOOD)))
    connection.endheaders(GOOD[:part])
    connection.close()
    eventually(lambda: shared.metric(refused) == before + 1, "it is counted")
    still_serves(shared)


@pytest.mark.parametrize(("annotation", "status"), [("fault", 500), ("deep", 400)])
def test_a_pod_that_the_injector_stumbles_over_does_not_end_the_service(
    annotation: str, status: int, stand_in: Webhook
) -> None:
    reply = stand_in.post(encoded(review(pod(test=annotation))))
    assert reply.status == status
    still_serves(stand_in)
    assert f"rejected a request with status {status}" in stand_in.log()


# Under load.

WORKERS, EACH = 64, 15


def test_under_load_everyone_gets_the_right_answer(webhook: Webhook) -> None:
    """Each asks for pods of its own, with wrong requests in between."""

    async def worker(session: aiohttp.ClientSession, number: int) -> None:
        for turn in range(EACH):
            name = f"pod-{number}-{turn}"
            asked = bare_pod(name)
            asked["metadata"]["labels"]["app"] = name
            async with session.post("/inject", json=review(asked, uid=f"uid-{name}")) as reply:
                assert reply.status == 200
                answered = json.loads(await reply.read())
            assert answered["response"]["uid"] == f"uid-{name}"
            changed = patched(asked, answered)
            assert changed["metadata"]["name"] == name
            assert "istio-proxy" in [container["name"] for container in changed["spec"]["containers"]]
            async with session.post("/inject", data=b"{", headers={"Content-Type": "application/json"}) as reply:
                assert reply.status == 400

    async def everyone() -> None:
        connector = aiohttp.TCPConnector(ssl=webhook.trust, limit=WORKERS)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(
            f"https://{ADDRESS}:{webhook.port}", connector=connector, timeout=timeout
        ) as session:
            await asyncio.gather(*(worker(session, number) for number in range(WORKERS)))

    asyncio.run(everyone())
    assert webhook.metric('istio_init_webhook_reviews_total{outcome="injected"}') == WORKERS * EACH
    assert webhook.metric('istio_init_webhook_reviews_total{outcome="bad_request"}') == WORKERS * EACH


# Readiness and metrics.


def test_readiness_and_liveness_are_plain_http(shared: Webhook) -> None:
    assert shared.status("/healthz/ready") == (200, b"ready\n")
    assert shared.status("/healthz/live") == (200, b"alive\n")
    assert shared.status("/inject").status == 404


def test_metrics_count_what_became_of_each_review(stand_in: Webhook) -> None:
    for asked in (POD, pod(test="denied"), pod(test="denied"), pod(test="alone")):
        stand_in.review(review(asked))
    stand_in.post(b"{")
    stand_in.post(encoded(review(pod(test="fault"))))
    outcomes = ("injected", "denied", "left_alone", "bad_request", "too_large", "failed")
    counted = {outcome: stand_in.metric(f'istio_init_webhook_reviews_total{{outcome="{outcome}"}}') for outcome in outcomes}
    assert counted == {"injected": 1, "denied": 2, "left_alone": 1, "bad_request": 1, "too_large": 0, "failed": 1}
    assert stand_in.metric("istio_init_webhook_review_seconds_count") == 6
    assert stand_in.metric("istio_init_webhook_in_flight") == 0
    assert stand_in.metric("process_resident_memory_bytes") > 0


def test_each_injection_and_each_denial_is_a_line_of_the_log(stand_in: Webhook) -> None:
    stand_in.review(review(POD))
    stand_in.review(review(pod(test="denied"), dryRun=True))
    lines = stand_in.log().splitlines()
    assert "pod bookinfo/productpage-v1-6b746f74dc-*: injected" in lines
    (denied,) = [line for line in lines if ": denied: " in line]
    assert denied.startswith("pod bookinfo/productpage-v1-6b746f74dc-* (dry run): denied: ")


# Its end.


def refuses_connections(webhook: Webhook) -> bool:
    try:
        socket.create_connection((ADDRESS, webhook.port), TIMEOUT).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_requests_in_flight(number: signal.Signals, stand_in: Webhook) -> None:
    connection, idle = stand_in.connect(), stand_in.connect()
    ask(idle, GOOD)
    connection.putrequest("POST", "/inject")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(GOOD)))
    connection.endheaders(GOOD[:100])
    eventually(lambda: stand_in.metric("istio_init_webhook_in_flight") == 1, "the request is under way")

    stand_in.signal(number)
    eventually(lambda: refuses_connections(stand_in), "nothing new is taken")
    assert stand_in.status("/healthz/ready").status == 503
    assert stand_in.process.poll() is None

    connection.send(GOOD[100:])
    reply = connection.getresponse()
    assert reply.status == 200
    assert patched(POD, json.loads(reply.read()))["spec"]["containers"][-1]["name"] == "stand-in"
    assert stand_in.process.wait(TIMEOUT) == 0
    connection.close()
    idle.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """Give one server to all tests of wrong requests: what one of them did to it, the next would notice."""
    directory: Path = tmp_path_factory.mktemp("shared")
    certificates = Certificates.make(directory)
    with Webhook.start(certificates, stand_in_arguments(certificates.certificate, certificates.key)) as started:
        yield started
