"""Encodes and decodes IP packets with a TCP segment or UDP datagram. Pure.

It supports what is needed to open a connection and to recognise one: no options, no fragments, no data.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from istio_init.rules.model import Family

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
# Destination unreachable: protocol and type (RFC 792; RFC 4443, 3.1). Behind its header is the packet that it is about.
UNREACHABLE = {Family.IPV4: (socket.IPPROTO_ICMP, 3), Family.IPV6: (socket.IPPROTO_ICMPV6, 1)}
ICMP_HEADER_BYTES = 8
RST, SYN, ACK = 0x04, 0x02, 0x10  # RFC 9293, 3.1
ADDRESS_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
VERSIONS = {4: Family.IPV4, 6: Family.IPV6}
HOPS = 64
WINDOW = 65535
TCP_HEADER = struct.Struct("!HHIIBBHHH")
TCP_WORDS = TCP_HEADER.size // 4
IPV4_HEADER = struct.Struct("!BBHHHBBH4s4s")  # RFC 791, 3.1
IPV6_HEADER = struct.Struct("!IHBB16s16s")  # RFC 8200, 3
IPV6_VERSION = 6 << 28
IPV4_PLAIN = 0x45  # version 4, header of five 32-bit words


class Segment(NamedTuple):
    """A TCP segment without data, or a UDP datagram, whose flags and sequence numbers are 0.

    With `unreachable`, it is a message of ICMP that the destination cannot be reached: the answer to a segment.
    """

    family: Family
    source: str
    source_port: int
    destination: str
    port: int
    flags: int = SYN
    sequence: int = 0
    acknowledged: int = 0
    protocol: int = TCP
    unreachable: bool = False

    def answer(self, flags: int) -> Segment:
        """Return the segment with which the receiver of this one answers."""
        return Segment(
            self.family,
            self.destination,
            self.port,
            self.source,
            self.source_port,
            flags,
            self.acknowledged,
            (self.sequence + bool(self.flags & SYN)) % 2**32,
        )


def pack(segment: Segment) -> bytes:
    """Encode a TCP segment with its IP header."""
    kind = ADDRESS_FAMILIES[segment.family]
    source, destination = (socket.inet_pton(kind, address) for address in (segment.source, segment.destination))
    fields = (
        segment.source_port,
        segment.port,
        segment.sequence,
        segment.acknowledged,
        TCP_WORDS << 4,
        segment.flags,
        WINDOW,
    )
    # RFC 9293, 3.1, and RFC 8200, 8.1: the checksum also covers addresses, protocol and length.
    pseudo_header = source + destination + struct.pack("!II", TCP_HEADER.size, TCP)
    body = TCP_HEADER.pack(*fields, _checksum(pseudo_header + TCP_HEADER.pack(*fields, 0, 0)), 0)
    if segment.family is Family.IPV6:
        return IPV6_HEADER.pack(IPV6_VERSION, len(body), TCP, HOPS, source, destination) + body
    head = (IPV4_PLAIN, 0, IPV4_HEADER.size + len(body), 0, 0, HOPS, TCP)
    return IPV4_HEADER.pack(*head, _checksum(IPV4_HEADER.pack(*head, 0, source, destination)), source, destination) + body


def parse(packet: bytes) -> Segment | None:
    """Decode a packet; None if it is about neither TCP nor UDP, or is truncated."""
    family = VERSIONS.get(packet[0] >> 4) if packet else None
    try:
        if family is Family.IPV4:
            *_, protocol, _, source, destination = IPV4_HEADER.unpack_from(packet)
            body = packet[(packet[0] & 0xF) * 4 :]
        elif family is Family.IPV6:
            _, _, protocol, _, source, destination = IPV6_HEADER.unpack_from(packet)
            body = packet[IPV6_HEADER.size :]
        else:
            return None
        if protocol not in (TCP, UDP):
            return _parse_unreachable(body) if (protocol, *body[:1]) == UNREACHABLE[family] else None
        source_port, port = struct.unpack_from("!HH", body)
        numbers, flags = (0, 0), 0
        if protocol == TCP:
            _, _, *numbers_read, _, flags, _, _, _ = TCP_HEADER.unpack_from(body)
            numbers = (numbers_read[0], numbers_read[1])
    except struct.error:
        return None
    kind = ADDRESS_FAMILIES[family]
    texts = (socket.inet_ntop(kind, source), socket.inet_ntop(kind, destination))
    return Segment(family, texts[0], source_port, texts[1], port, flags, *numbers, protocol)


def _parse_unreachable(message: bytes) -> Segment | None:
    about = parse(message[ICMP_HEADER_BYTES:])
    return about.answer(0)._replace(protocol=about.protocol, unreachable=True) if about else None


def _checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071, for data of even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
