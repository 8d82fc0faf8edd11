"""The pure parts of a validation: packets as bytes, and which connections are tried for which settings."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.rules.layout import CURRENT
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import Family
from istio_init.rules.settings import Settings
from istio_init.rules.validation.packets import ACK, SYN, TCP, UDP, UNREACHABLE, Segment, pack, parse
from istio_init.rules.validation.paths import INSIDE, NOWHERE, Path, ProbeContext, choose_app, paths, unchecked

CONTEXT = ProbeContext(
    own=(0, 0), app=(0, 0), local=frozenset({"127.0.0.1", "::1", "::6", "10.77.0.2"}), mark=15002, probe_port=15002
)
PORTS = st.integers(1, 65535)
NUMBERS = st.integers(0, 2**32 - 1)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    family = draw(st.sampled_from(list(Family)))
    address = st.ip_addresses(v=4 if family is Family.IPV4 else 6).filter(
        lambda one: one.version == 4 or not one.ipv4_mapped
    )
    ends = (str(draw(address)), draw(PORTS), str(draw(address)), draw(PORTS))
    return Segment(family, *ends, draw(st.integers(0, 255)), draw(NUMBERS), draw(NUMBERS))


def ones_complement_sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


@given(segments())
def test_a_segment_is_read_as_it_was_written(segment: Segment) -> None:
    read = parse(pack(segment))
    assert read is not None
    assert (read.source_port, read.port, read.flags) == (segment.source_port, segment.port, segment.flags)
    assert (read.sequence, read.acknowledged, read.protocol) == (segment.sequence, segment.acknowledged, TCP)
    assert read.family is segment.family


@given(segments())
def test_checksums_are_right(segment: Segment) -> None:
    packet = pack(segment)
    if segment.family is Family.IPV4:
        assert ones_complement_sum(packet[:20]) == 0xFFFF
        addresses, body = packet[12:20], packet[20:]
    else:
        addresses, body = packet[8:40], packet[40:]
    assert ones_complement_sum(addresses + struct.pack("!II", len(body), TCP) + body) == 0xFFFF


def test_a_datagram_is_read() -> None:
    head = bytes.fromhex("45000020 00000000 40110000 0a4d0002 0a60000a".replace(" ", ""))
    datagram = parse(head + struct.pack("!HHHH", 40000, 53, 12, 0) + b"four")
    assert datagram == Segment(Family.IPV4, "10.77.0.2", 40000, "10.96.0.10", 53, flags=0, protocol=UDP)


@pytest.mark.parametrize(("family", "start"), [("ipv4", 20), ("ipv6", 40)])
def test_a_rejection_is_an_answer_to_the_segment_it_is_about(family: str, start: int) -> None:
    addresses = {"ipv4": ("198.51.100.254", "198.51.100.253"), "ipv6": ("2001:db8:ffff::2", "2001:db8:ffff::1")}[family]
    sent = Segment(Family(family), addresses[0], 20001, addresses[1], 9080)
    protocol, kind = UNREACHABLE[sent.family]
    head = bytearray(pack(sent.answer(0))[:start])
    head[9 if family == "ipv4" else 6] = protocol
    heard = parse(bytes(head) + bytes([kind, 4, 0, 0, 0, 0, 0, 0]) + pack(sent))
    assert heard is not None
    assert (heard.destination, heard.port, heard.source_port, heard.unreachable) == (addresses[0], 20001, 9080, True)


@given(st.binary(max_size=64))
def test_no_bytes_are_too_strange_to_read(data: bytes) -> None:
    read = parse(data)
    assert read is None or read.protocol in (TCP, UDP)


def test_an_answer_goes_back_and_acknowledges() -> None:
    answer = Segment(Family.IPV4, "10.0.0.1", 80, "10.0.0.2", 20000, SYN | ACK, 2**32 - 1, 7).answer(ACK)
    assert answer == Segment(Family.IPV4, "10.0.0.2", 20000, "10.0.0.1", 80, ACK, 7, 0)


def found(context: ProbeContext = CONTEXT, **values: str) -> list[Path]:
    settings = Settings.of(CURRENT, **values)
    return list(paths(settings, build_plan(settings), context))


def outcomes(listed: list[Path], what: str) -> dict[tuple[str, int], int | None]:
    return {(path.packet.destination, path.packet.port): path.expected for path in listed if path.what == what}


def test_each_list_has_its_samples_and_what_is_expected_of_them() -> None:
    listed = found(service_cidrs="10.0.0.0/8,192.168.1.1", service_exclude_cidrs="10.96.0.0/16", outbound_ports="5432")
    nowhere = NOWHERE[Family.IPV4][0]
    assert outcomes(listed, "out") == {
        (nowhere, 15002): None,
        ("10.0.0.1", 15002): 15001,
        ("192.168.1.1", 15002): 15001,
        ("10.96.0.1", 15002): None,
        (nowhere, 5432): 15001,
    }


def test_inbound_ports_of_every_kind_are_tried() -> None:
    inside = INSIDE[Family.IPV4]
    listed = found(inbound_ports="*", inbound_exclude_ports="15020,16000-16010")
    ends = {15002: 15006, 15020: None, 16000: None, 15008: None}
    assert outcomes(listed, "in") == {(inside, port): end for port, end in ends.items()}
    listed = found(inbound_ports="9080", mode="TPROXY")
    assert outcomes(listed, "in") == {(inside, 15002): None, (inside, 9080): 15006}
    assert outcomes(listed, "in by policy route") == {(NOWHERE[Family.IPV4][0], 9080): 15006}


def test_a_probe_that_flags_leave_alone_gives_way_to_one_that_shows_capture() -> None:
    listed = found(
        inbound_ports="*", inbound_exclude_ports="15002,15003-15007", service_cidrs="*", outbound_exclude_ports="15009"
    )
    assert outcomes(listed, "in")[INSIDE[Family.IPV4], 15010] == 15006
    assert outcomes(listed, "out")[NOWHERE[Family.IPV4][0], 15010] == 15001


def test_the_proxys_own_ports_are_not_tried_as_apps() -> None:
    assert 15001 not in {port for _, port in outcomes(found(inbound_ports="15001,9080"), "in")}


@pytest.mark.parametrize("cidr", ["127.0.0.0/8", "224.0.0.0/4", "10.77.0.2", "fd00::/8"])
def test_a_network_without_an_address_that_a_connection_leaves_to_has_no_path(cidr: str) -> None:
    assert set(outcomes(found(service_cidrs=cidr), "out")) == {(NOWHERE[Family.IPV4][0], 15002)}


def test_an_address_that_is_this_hosts_own_does_not_stand_for_the_world() -> None:
    first, second, *_ = NOWHERE[Family.IPV4]
    context = CONTEXT._replace(local=CONTEXT.local | {first})
    assert set(outcomes(found(context, service_cidrs="*"), "out")) == {(second, 15002)}


def test_families_that_are_off_are_not_tried() -> None:
    assert {path.family for path in found(service_cidrs="*")} == {Family.IPV4}
    assert {path.family for path in found(service_cidrs="*", dual_stack="true")} == set(Family)


def test_the_proxys_user_is_tried_with_its_own_group_where_this_process_has_both() -> None:
    context = CONTEXT._replace(own=(1337, 1337), app=(65534, 65534))
    owners = {(path.packet.uid, path.packet.gid) for path in found(context) if path.what == "proxy to its own pod"}
    assert owners == {(1337, 65534), (65534, 1337), (1337, 1337)}


@pytest.mark.parametrize(
    ("values", "own", "app"),
    [
        ({"proxy_uids": "1337"}, (0, 0), (0, 0)),
        ({"proxy_uids": "1337"}, (1337, 1337), (65534, 65534)),
        ({"proxy_uids": "0,65534"}, (0, 0), (65533, 65533)),
        ({"owner_groups": "2000,2001"}, (0, 0), (0, 2000)),
        ({"owner_groups": "2000,2001"}, (0, 2001), (0, 2001)),
        ({"owner_groups": "1337,2001"}, (0, 0), (0, 2001)),
        ({"owner_groups_exclude": "0"}, (0, 0), (0, 65534)),
    ],
)
def test_the_app_is_one_that_rules_capture_and_ourselves_if_we_will_do(
    values: dict[str, str], own: tuple[int, int], app: tuple[int, int]
) -> None:
    assert choose_app(Settings.of(CURRENT, **values), *own) == app


def test_long_lists_are_sampled() -> None:
    settings = Settings.of(CURRENT, inbound_ports=",".join(map(str, range(2000, 2100))))
    assert len(outcomes(list(paths(settings, build_plan(settings), CONTEXT)), "in")) == 10
    assert list(unchecked(settings)) == ["92 more items of -b"]
    users = ",".join(f"tcp:80:{uid}" for uid in range(10))
    settings = Settings.of(CURRENT, outbound_exclude_ports_for_uids=users, inbound_exclude_cidrs="10.0.0.0/8")
    assert list(unchecked(settings)) == [
        "the senders of --exclude-inbound-cidrs",
        "2 more items of --exclude-outbound-ports-for-uids",
    ]
    assert [path.expected for path in paths(settings, build_plan(settings), CONTEXT) if path.what == "user out"] == [
        None
    ] * 8
    assert list(unchecked(Settings.of(CURRENT))) == []
