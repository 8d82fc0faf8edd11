"""The lab's name server answers what it knows, and asks another for the rest."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from dnslib import QTYPE, RCODE, DNSRecord
from dnslib.server import DNSLogger, DNSServer

from istio_init.lab import resolver
from istio_init.lab.resolver import Names, read_names

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCALHOST = "127.0.0.1"
TIMEOUT = 10.0  # seconds
ADDRESSES = {"reviews.example": ("10.96.0.11", "fd00:10:96::11"), "old.example": ("10.96.0.12",)}


@contextmanager
def serving(names: Names, *, tcp: bool = False) -> Iterator[int]:
    """Serve on a free port, and give it."""
    server = DNSServer(names, LOCALHOST, 0, tcp=tcp, logger=DNSLogger("error"))
    server.start_thread()
    try:
        yield server.server.server_address[1]
    finally:
        server.stop()
        server.server.server_close()


def ask(port: int, name: str, kind: str, *, tcp: bool = False) -> DNSRecord:
    return DNSRecord.parse(DNSRecord.question(name, kind).send(LOCALHOST, port, tcp=tcp, timeout=TIMEOUT))


def answers(reply: DNSRecord) -> list[tuple[str, str]]:
    return [(QTYPE.get(record.rtype), str(record.rdata)) for record in reply.rr]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("reviews.example", "A", [("A", "10.96.0.11")]),
        ("reviews.example", "AAAA", [("AAAA", "fd00:10:96::11")]),
        ("Reviews.EXAMPLE.", "A", [("A", "10.96.0.11")]),
        ("reviews.example", "ANY", [("A", "10.96.0.11"), ("AAAA", "fd00:10:96::11")]),
        ("old.example", "AAAA", []),
        ("reviews.example", "MX", []),
    ],
)
def test_what_is_known_is_answered_by_its_family(
    name: str, kind: str, expected: list[tuple[str, str]], *, tcp: bool
) -> None:
    with serving(Names(ADDRESSES), tcp=tcp) as port:
        reply = ask(port, name, kind, tcp=tcp)
    assert answers(reply) == expected
    assert reply.header.rcode == RCODE.NOERROR, "a name without such a record is there nevertheless"


def test_without_another_server_what_is_not_known_is_not_there() -> None:
    with serving(Names(ADDRESSES)) as port:
        assert ask(port, "nobody.example", "A").header.rcode == RCODE.NXDOMAIN


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_the_rest_is_asked_of_another_server_by_the_same_protocol(monkeypatch: pytest.MonkeyPatch, *, tcp: bool) -> None:
    with serving(Names({"reviews-v1": ("10.244.0.11",)}), tcp=tcp) as upstream:
        monkeypatch.setattr(resolver, "RESOLVER_PORT", upstream)
        with serving(Names(ADDRESSES, LOCALHOST), tcp=tcp) as port:
            assert answers(ask(port, "reviews-v1", "A", tcp=tcp)) == [("A", "10.244.0.11")]
            assert ask(port, "nobody.example", "A", tcp=tcp).header.rcode == RCODE.NXDOMAIN
            assert answers(ask(port, "reviews.example", "A", tcp=tcp)) == [("A", "10.96.0.11")]


def test_a_server_that_does_not_answer_is_a_failure_and_not_a_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((LOCALHOST, 0))
        monkeypatch.setattr(resolver, "RESOLVER_PORT", silent.getsockname()[1])
        monkeypatch.setattr(resolver, "FORWARD_TIMEOUT", 0.1)
        with serving(Names(ADDRESSES, LOCALHOST)) as port:
            assert ask(port, "nobody.example", "A").header.rcode == RCODE.SERVFAIL


def test_an_answer_that_cannot_be_read_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as confused:
        confused.bind((LOCALHOST, 0))
        confused.settimeout(TIMEOUT)
        monkeypatch.setattr(resolver, "RESOLVER_PORT", confused.getsockname()[1])

        def answer() -> None:
            _, client = confused.recvfrom(512)
            confused.sendto(b"nonsense", client)

        thread = threading.Thread(target=answer)
        thread.start()
        with serving(Names(ADDRESSES, LOCALHOST)) as port:
            assert ask(port, "nobody.example", "A").header.rcode == RCODE.SERVFAIL
        thread.join()


def test_every_question_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Names(ADDRESSES)) as port:
        ask(port, "reviews.example", "A")
        ask(port, "nobody.example", "AAAA")
    assert capsys.readouterr().out.splitlines() == [
        f"dns answered name=reviews.example type=A protocol=udp client={LOCALHOST}",
        f"dns unknown name=nobody.example type=AAAA protocol=udp client={LOCALHOST}",
    ]


def test_names_are_read_line_by_line() -> None:
    text = "10.96.0.11 Reviews.example\n\nfd00:10:96::11 reviews.example r\n"
    assert read_names(text) == {"reviews.example": ("10.96.0.11", "fd00:10:96::11"), "r": ("fd00:10:96::11",)}
