"""What no kernel should send: answers that are cut short, malformed, from elsewhere, or late, or that change meanwhile.

Each is an error, and none is an answer that is shorter, or a wait without end.
"""

from __future__ import annotations

import errno
import struct
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.core.errors import NotPermitted, Unsupported
from istio_init.rules.kernel import netlink, nf_tables, rtnetlink
from istio_init.rules.kernel.netlink import ATTRIBUTE, MESSAGE, Netlink, ReadError, attribute, parse, records
from istio_init.rules.kernel.surroundings import add, addresses
from istio_init.rules.model import Family, TproxyRoute

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 4711
MSG_TRUNC = 0x20  # bits/socket.h
DONE, ERROR = netlink.NLMSG_DONE, netlink.NLMSG_ERROR
ANSWER = 32  # some type of an answer
OK = struct.pack("=i", 0)


def message(
    kind: int, content: bytes = b"", *, flags: int = 0, sequence: int = 1, port: int = PORT, size: int = -1
) -> bytes:
    size = MESSAGE.size + len(content) if size < 0 else size
    return (MESSAGE.pack(size, kind, flags, sequence, port) + content).ljust(netlink.aligned(size), b"\0")


def refusal(number: int) -> bytes:
    return struct.pack("=i", -number)


class Socket:
    """Stands for a socket whose other end says what a test tells it to, once each.

    Args:
        answers: what is received, in turn: data, an error to be raised, or all of what recvmsg(2) gives.
    """

    def __init__(self, *answers: bytes | OSError | tuple[bytes, list[Any], int, tuple[int, int]]) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.is_open = True

    def __call__(self, *_: int) -> Socket:
        return self

    def settimeout(self, timeout: float) -> None:
        assert timeout > 0

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    def getsockname(self) -> tuple[int, int]:
        return (PORT, 0)

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recvmsg(self, _: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer if isinstance(answer, tuple) else (answer, [], 0, (0, 0))

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Socket]:
    def opened(*answers: Any) -> Socket:
        end = Socket(*answers)
        monkeypatch.setattr("istio_init.rules.kernel.netlink.socket.socket", end)
        return end

    return opened


def dumped(end: Socket) -> list[bytes]:
    with Netlink(0) as kernel:
        found = kernel.dump(ANSWER, b"")
    assert end.answers == []
    assert not end.is_open
    return found


UNREADABLE: dict[str, Any] = {
    "nothing": b"",
    "no-header": message(ANSWER)[:-1],
    "length-0": message(ANSWER, size=0) + bytes(MESSAGE.size),
    "length-less-than-its-header": message(ANSWER, size=MESSAGE.size - 1),
    "length-more-than-there-is": message(ANSWER, size=MESSAGE.size + 1)[: MESSAGE.size],
    "length-without-end": MESSAGE.pack(0xFFFFFFFF, ANSWER, 0, 1, PORT),
    "rest-that-is-no-message": message(ANSWER) + b"\0",
    "another-sequence": message(ANSWER, sequence=2),
    "another-port": message(ANSWER, port=PORT + 1),
    "nothing-to-do": message(1),
    "data-lost": message(4),
    "done-without-a-word": message(DONE),
    "error-without-a-number": message(ERROR, b"\0\0\0"),
    "acknowledgement-of-a-list": message(ERROR, OK),
    "error-above-0": message(DONE, struct.pack("=i", 1)),
    "error-beyond-all": message(ERROR, struct.pack("=i", -(1 << 31))),
    "truncated": (message(ANSWER), [], MSG_TRUNC, (0, 0)),
    "from-another-process": (message(DONE, OK), [], 0, (4712, 0)),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_an_error_and_never_nothing(use: Callable[..., Socket], answer: Any) -> None:
    end = use(message(ANSWER, b"good"), answer)
    with pytest.raises(ReadError, match="malformed, truncated, or not an answer") as caught:
        dumped(end)
    assert caught.value.errno == errno.EBADMSG
    assert not end.is_open


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (TimeoutError("timed out"), errno.ETIMEDOUT),
        (OSError(errno.ENOBUFS, "No buffer space available"), errno.ENOBUFS),
    ],
)
def test_an_answer_that_does_not_come_or_was_lost_is_an_error(
    use: Callable[..., Socket], error: OSError, number: int
) -> None:
    use(error, error)
    with Netlink(0) as kernel:
        with pytest.raises(ReadError) as dumping:
            kernel.dump(ANSWER, b"")
        with pytest.raises(ReadError) as changing:
            kernel.request(ANSWER, 0, b"")
    assert (dumping.value.errno, changing.value.errno) == (number, number)


def test_a_list_comes_in_parts_each_of_several_messages(use: Callable[..., Socket]) -> None:
    end = use(message(ANSWER, b"1") + message(ANSWER, b"two"), message(ANSWER) + message(DONE, OK) + b"never read")
    assert dumped(end) == [b"1", b"two", b""]
    assert MESSAGE.unpack(end.sent[0]) == (16, ANSWER, 0x301, 1, PORT)


@pytest.mark.parametrize("kind", [DONE, ERROR])
def test_a_list_may_end_with_an_error(use: Callable[..., Socket], kind: int) -> None:
    with pytest.raises(OSError, match="Address family not supported") as caught:
        dumped(use(message(ANSWER) + message(kind, refusal(errno.EAFNOSUPPORT))))
    assert (type(caught.value), caught.value.errno) == (OSError, errno.EAFNOSUPPORT)


@pytest.mark.parametrize("interrupted", ["answer", "end"])
def test_a_list_that_changed_meanwhile_is_read_again(use: Callable[..., Socket], interrupted: str) -> None:
    flags = {name: netlink.NLM_F_DUMP_INTR * (name == interrupted) for name in ("answer", "end")}
    first = message(ANSWER, b"old", flags=flags["answer"]) + message(DONE, OK, flags=flags["end"])
    second = message(ANSWER, b"new", sequence=2) + message(DONE, OK, sequence=2)
    assert dumped(use(first, second)) == [b"new"]


def test_a_list_that_never_stands_still_is_an_error(use: Callable[..., Socket]) -> None:
    attempts = range(1, netlink.DUMP_ATTEMPTS + 1)
    end = use(*(message(DONE, OK, flags=netlink.NLM_F_DUMP_INTR, sequence=sequence) for sequence in attempts))
    with pytest.raises(ReadError, match=r"changed during each of \d+ attempts") as caught:
        dumped(end)
    assert (caught.value.errno, end.answers) == (errno.EINTR, [])


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (message(ERROR, OK + b"the request"), None),
        (message(ERROR, refusal(errno.EPERM)), errno.EPERM),
        (message(DONE, OK), errno.EBADMSG),
        (message(ANSWER), errno.EBADMSG),
        (message(ERROR, OK, sequence=9), errno.EBADMSG),
    ],
    ids=["done", "refused", "end-of-a-list", "answer", "of-another"],
)
def test_a_change_is_made_when_it_is_acknowledged(use: Callable[..., Socket], answer: bytes, number: int | None) -> None:
    end = use(answer)
    raised = None
    try:
        with Netlink(0) as kernel:
            kernel.request(ANSWER, netlink.NLM_F_CREATE, b"body")
    except OSError as error:
        raised = error.errno
    assert raised == number
    assert MESSAGE.unpack_from(end.sent[0]) == (20, ANSWER, 0x405, 1, PORT)


headers = st.sampled_from((MESSAGE, ATTRIBUTE))


@given(st.binary(max_size=200), headers)
def test_whatever_the_bytes_say_they_are_cut_into_records_or_refused(data: bytes, header: struct.Struct) -> None:
    room = len(data) // header.size
    try:
        found = list(islice(records(data, header), room + 1))
    except ReadError:
        return
    sizes = [header.size + len(content) for _, content in found]
    starts = list(accumulate(map(netlink.aligned, sizes), initial=0))
    assert len(found) <= room
    assert starts[-1] >= len(data)  # nothing is left out at the end
    for start, size, (fields, content) in zip(starts, sizes, found, strict=False):
        assert data[start : start + size] == header.pack(size, *fields) + content


@given(st.dictionaries(st.integers(0, netlink.NLA_TYPE_MASK), st.binary(max_size=40)), st.binary(min_size=4, max_size=4))
def test_attributes_that_are_written_are_read(values: dict[int, bytes], fields: bytes) -> None:
    content = fields + b"".join(attribute(kind, value) for kind, value in values.items())
    assert parse(content, nf_tables.BODY) == (nf_tables.BODY.unpack(fields), values)


@pytest.mark.parametrize(
    "content", [b"", b"\x02", bytes(12) + b"\x03\0\0\0", bytes(12) + b"\x09\0\0\0", bytes(12) + b"\0\0"]
)
def test_a_content_that_is_cut_short_is_an_error(content: bytes) -> None:
    with pytest.raises(ReadError):
        parse(content, rtnetlink.RULE_OR_ROUTE)


def test_flags_of_an_attribute_are_no_part_of_its_type() -> None:
    nested = ATTRIBUTE.pack(6, 0x8000 | 0x4000 | 7) + b"ab"
    assert parse(nested, struct.Struct("")) == ((), {7: b"ab"})


@pytest.mark.parametrize("ask", [addresses, lambda: add(TproxyRoute(1, 2)), lambda: nf_tables.chains(Family.IPV4)])
def test_what_could_not_be_read_ends_the_run_with_a_reason(use: Callable[..., Socket], ask: Callable[[], object]) -> None:
    use(TimeoutError("timed out"))
    with pytest.raises(Unsupported, match=r": the kernel did not answer within 5 s$"):
        ask()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT])
def test_a_kernel_without_nf_tables_has_no_chains_and_no_rules(use: Callable[..., Socket], number: int) -> None:
    for ask in (nf_tables.chains, nf_tables.rules):
        use(message(ERROR, refusal(number)))
        assert list(ask(Family.IPV4)) == []


@pytest.mark.parametrize(("number", "error"), [(errno.EPERM, NotPermitted), (errno.ENOMEM, Unsupported)])
def test_a_refusal_to_list_is_not_an_empty_list(use: Callable[..., Socket], number: int, error: type[Exception]) -> None:
    for ask in (nf_tables.chains, nf_tables.rules):
        use(message(ERROR, refusal(number)))
        with pytest.raises(error, match="cannot be read"):
            ask(Family.IPV4)


BATCH = ((16, 0, b"\0\0\0\x0a"), (2568, 0, b"body"), (17, 0, b"\0\0\0\x0a"))


def test_a_batch_is_sent_at_once_and_its_last_message_is_acknowledged(use: Callable[..., Socket]) -> None:
    kernel = use(message(ERROR, OK, sequence=2))
    nf_tables.change(BATCH[1:2])
    (sent,) = kernel.sent
    headers = [header for header, _ in records(sent, MESSAGE)]
    assert [(kind, bool(flags & netlink.NLM_F_ACK)) for kind, flags, _, _ in headers] == [
        (16, False),
        (2568, True),
        (17, False),
    ]
    assert [number for _, _, number, _ in headers] == [1, 2, 3]


@pytest.mark.parametrize(
    "answers",
    [
        [message(ERROR, refusal(errno.ENOENT), sequence=2)],  # a message of the batch
        [message(ERROR, refusal(errno.ENOENT), sequence=1), message(ERROR, OK, sequence=2)],  # the commit
        [message(ERROR, OK, sequence=4)],  # not one of the batch's
        [message(DONE, OK, sequence=2)],  # not an acknowledgement
        [TimeoutError("timed out")],
    ],
    ids=["message", "commit", "stranger", "no-acknowledgement", "silence"],
)
def test_a_batch_that_failed_or_of_which_nobody_knows_is_an_error(
    use: Callable[..., Socket], answers: list[bytes | OSError]
) -> None:
    use(*answers)
    with pytest.raises(Unsupported, match="the rules of nf_tables cannot be changed"):
        nf_tables.change(BATCH[1:2])
