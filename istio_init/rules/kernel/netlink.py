"""A netlink(7) client: requests, dumps and their framing. It is small because every pod start waits for its import.

An answer that cannot be read completely is an error; it is never returned in part.
"""

from __future__ import annotations

import errno
import os
import struct

from istio_init.core.light import TYPE_CHECKING, socket

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from typing import Self

NETLINK_ROUTE = 0  # linux/netlink.h, with all constants up to NLA_TYPE_MASK
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200  # when creating: fail if it exists
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2  # also an acknowledgement, with error 0
NLMSG_DONE = 3
NLMSG_MIN_TYPE = 0x10  # types below it are control messages
NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
MAX_ERRNO = 4095  # linux/err.h

MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
ERROR = struct.Struct("=i")  # start of nlmsgerr, and of NLMSG_DONE (netlink_dump_done in net/netlink/af_netlink.c)

KERNEL = 0  # the kernel's port
BUFFER_SIZE = 1 << 16  # bytes; the kernel fills 32 KiB at most (netlink_recvmsg)
SEND_BUFFER = 1 << 16  # bytes that every socket takes at once (net.core.wmem_default is larger)
SO_SNDBUFFORCE = 32  # socket(7); Python has no name for it
ANSWER_TIMEOUT = 5.0  # seconds
DUMP_ATTEMPTS = 10  # a dump is repeated if something changed in the meantime


class ReadError(OSError):
    """The kernel's answer is incomplete or malformed; errors that the kernel reports are plain OSErrors."""


class Netlink:
    """A netlink socket, to be used in a `with` block.

    Args:
        protocol: the kernel subsystem, NETLINK_*.

    Raises:
        OSError: the kernel lacks the subsystem, or does not permit this process to use it.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(ANSWER_TIMEOUT)
        self._socket.bind((0, 0))  # the kernel chooses the port
        self._port, _ = self._socket.getsockname()
        self._sequence = 0

    def __enter__(self) -> Self:
        """Return this client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> None:
        """Request a change, and wait for the acknowledgement.

        Args:
            kind: message type.
            flags: NLM_F_* flags besides NLM_F_REQUEST and NLM_F_ACK.
            body: message without its header.

        Raises:
            ReadError: it is unknown whether the change was made.
            OSError: the kernel refused, with its `errno`.
        """
        self._send(kind, NLM_F_ACK | flags, body)
        answer, _, content = next(self._answers())
        if answer != NLMSG_ERROR:
            raise _malformed()
        _raise_error(content)

    def transact(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Send messages as one batch, which has an effect as a whole or not at all.

        The last message is acknowledged, and so are those that fail; a failed commit is reported for the first one
        (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).

        Args:
            messages: type, flags besides those of every request, and body of each; the first and the last one are the
                begin and the end of a batch.

        Raises:
            ReadError: it is unknown whether the changes were made.
            OSError: the kernel refused; `errno` says why.
        """
        first, last = self._sequence + 1, self._sequence + len(messages) - 1
        data = b""
        for number, (kind, chosen, body) in enumerate(messages, first):
            flags = NLM_F_REQUEST | chosen | (NLM_F_ACK if number == last else 0)
            data += MESSAGE.pack(MESSAGE.size + len(body), kind, flags, number, self._port) + body
        self._sequence += len(messages)
        if len(data) > SEND_BUFFER:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * len(data))
        self._socket.send(data)
        for (kind, _, number, _), content in self._records(range(first, last + 1)):
            if kind != NLMSG_ERROR:
                raise _malformed()
            _raise_error(content)
            if number == last:
                break

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Request all objects of a kind, and return the messages of the answer without their headers.

        Args:
            kind: message type of the request.
            body: request without its header.

        Raises:
            ReadError: the answer is incomplete, or no attempt gave a consistent one.
            OSError: the kernel refused, with its `errno`.
        """
        for _ in range(DUMP_ATTEMPTS):
            self._send(kind, NLM_F_DUMP, body)
            found, is_consistent = self._dumped()
            if is_consistent:
                return found
        raise ReadError(errno.EINTR, f"the kernel's list changed during each of {DUMP_ATTEMPTS} attempts to read it")

    def _dumped(self) -> tuple[list[bytes], bool]:
        """Read a dump to its end; return its messages, and whether nothing changed in the meantime."""
        found = []
        is_consistent = True
        for kind, flags, content in self._answers():
            is_consistent = is_consistent and not flags & NLM_F_DUMP_INTR
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                _raise_error(content)
            if kind == NLMSG_DONE:
                break
            if kind < NLMSG_MIN_TYPE:
                raise _malformed()
            found.append(content)
        return found, is_consistent

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        size = MESSAGE.size + len(body)
        self._socket.send(MESSAGE.pack(size, kind, NLM_F_REQUEST | flags, self._sequence, self._port) + body)

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and content of each answer to the last request; the caller detects the last one."""
        for (kind, flags, _, _), content in self._records((self._sequence,)):
            yield kind, flags, content

    def _records(self, expected: Collection[int]) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Yield header and content of each answer to the requests with the expected numbers."""
        while True:
            for header, content in records(self._receive(), MESSAGE):
                _, _, sequence, port = header
                if sequence not in expected or port != self._port:
                    raise _malformed()
                yield header, content

    def _receive(self) -> bytes:
        try:
            data, _, flags, (sender, *_) = self._socket.recvmsg(BUFFER_SIZE)
        except TimeoutError:
            raise ReadError(errno.ETIMEDOUT, f"the kernel did not answer within {ANSWER_TIMEOUT:g} s") from None
        except OSError as error:  # such as ENOBUFS: messages were lost
            raise ReadError(error.errno, error.strerror) from error
        if flags & socket.MSG_TRUNC or sender != KERNEL or not data:
            raise _malformed()
        return data


def records(data: bytes, header: struct.Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Split data into records; each has a header that starts with the record's length, content, and padding.

    Args:
        data: messages or attributes.
        header: format of the record's header, MESSAGE or ATTRIBUTE.

    Yields:
        the header's fields without the length, and the content.

    Raises:
        ReadError: a length is shorter than the header or exceeds the data.
    """
    start = 0
    while start < len(data):
        if len(data) - start < header.size:
            raise _malformed()
        size, *fields = header.unpack_from(data, start)
        if not header.size <= size <= len(data) - start:
            raise _malformed()
        yield tuple(fields), data[start + header.size : start + size]
        start += aligned(size)


def parse(content: bytes, header: struct.Struct) -> tuple[tuple[int, ...], dict[int, bytes]]:
    """Parse the content of a message; return the fields of its fixed header, and its attributes by type.

    Raises:
        ReadError: the content is shorter than `header`, or an attribute is truncated.
    """
    if len(content) < header.size:
        raise _malformed()
    attributes = records(content[header.size :], ATTRIBUTE)
    return header.unpack_from(content), {kind & NLA_TYPE_MASK: value for (kind,), value in attributes}


def attribute(kind: int, value: bytes) -> bytes:
    """Encode an attribute, with its padding."""
    size = ATTRIBUTE.size + len(value)
    return (ATTRIBUTE.pack(size, kind) + value).ljust(aligned(size), b"\0")


def aligned(size: int) -> int:
    """Return a size in bytes, rounded up to netlink's alignment."""
    return (size + 3) & ~3  # linux/netlink.h: NLMSG_ALIGN, NLA_ALIGN


def _raise_error(content: bytes) -> None:
    """Raise the error that an acknowledgement or the end of a dump reports, if any."""
    if len(content) < ERROR.size:
        raise _malformed()
    (code,) = ERROR.unpack_from(content)
    if not -MAX_ERRNO <= code <= 0:
        raise _malformed()
    if code:
        raise OSError(-code, os.strerror(-code))


def _malformed() -> ReadError:
    return ReadError(errno.EBADMSG, "the kernel's answer is malformed, truncated, or not an answer to this request")
