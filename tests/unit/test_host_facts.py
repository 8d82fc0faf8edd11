"""What layout current asks of the machine: the servers of resolv.conf, and whether the pod is one of IPv6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import Unsupported
from istio_init.rules import environment
from istio_init.rules.environment import local_addresses, read_host_facts, read_settings
from istio_init.rules.layout import CURRENT
from tests.unit.program import call

if TYPE_CHECKING:
    from pathlib import Path

# As Linux prints them: fib_trie of a namespace with lo and eth0 (10.77.0.2/24), and if_inet6.
LO_IPV4 = """\
Local:
  +-- 127.0.0.0/8 2 0 2
     +-- 127.0.0.0/31 1 0 0
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 127.255.255.255
        /32 link BROADCAST
"""
ETH0_IPV4 = """\
Main:
  +-- 0.0.0.0/0 3 0 4
     |-- 0.0.0.0
        /0 universe UNICAST
        |-- 10.77.0.0
           /24 link UNICAST
        |-- 10.77.0.2
           /32 host LOCAL
        |-- 10.77.0.255
           /32 link BROADCAST
     |-- 10.88.0.9
        /32 universe UNICAST
"""
TPROXY_ROUTE = "Id 133:\n  |-- 0.0.0.0\n     /0 host LOCAL\n"
LINK_LOCAL_IPV4 = "Local:\n  |-- 169.254.7.7\n     /32 host LOCAL\n"
LO_IPV6 = "00000000000000000000000000000001 01 80 10 80       lo\n"
OURS_IPV6 = "00000000000000000000000000000006 01 80 00 80       lo\n"
LINK_LOCAL_IPV6 = (
    "fe8000000000000000fc00fffe000001 02 40 20 80     eth0\nfebf0000000000000000000000000001 02 40 20 80     eth0\n"
)
ETH0_IPV6 = "fd770000000000000000000000000002 02 40 00 80     eth0\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    for name, file in (("RESOLV_CONF", made.resolv), ("IPV4_ADDRESSES", made.ipv4), ("IPV6_ADDRESSES", made.ipv6)):
        monkeypatch.setattr(environment, name, str(file))
    return made


class Machine:
    """The files that tell of a machine."""

    def __init__(self, path: Path) -> None:
        self.resolv, self.ipv4, self.ipv6 = path / "resolv.conf", path / "fib_trie", path / "if_inet6"
        self.ipv4.write_text(LO_IPV4, encoding="ascii")

    def has(self, ipv4: str, ipv6: str) -> None:
        self.ipv4.write_text(ipv4, encoding="ascii")
        self.ipv6.write_text(ipv6, encoding="ascii")

    def resolves_with(self, text: str) -> tuple[str, ...]:
        self.resolv.write_text(text, encoding="latin-1")
        return read_host_facts().nameservers


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "is_ipv6", "has_ipv6"),
    [
        (ETH0_IPV4 + LO_IPV4, LO_IPV6, False, False),
        (ETH0_IPV4 + LO_IPV4, LO_IPV6 + ETH0_IPV6, False, True),
        (LO_IPV4, ETH0_IPV6 + LO_IPV6, True, True),
        (LO_IPV4 + LINK_LOCAL_IPV4 + TPROXY_ROUTE, LINK_LOCAL_IPV6 + ETH0_IPV6, True, True),
        (LO_IPV4, LO_IPV6 + LINK_LOCAL_IPV6 + OURS_IPV6, False, False),
        (LO_IPV4 + LINK_LOCAL_IPV4, LO_IPV6, False, False),
        ("", "", False, False),
    ],
    ids=["ipv4", "both", "ipv6", "ipv6 beside link-local", "none but link-local and ours", "link-local", "no card"],
)
def test_a_pod_has_ipv6_by_an_ordinary_address_and_is_of_ipv6_by_having_no_others(
    ipv4: str,
    ipv6: str,
    is_ipv6: bool,  # noqa: FBT001 - a parameter of the test
    has_ipv6: bool,  # noqa: FBT001 - as above
    machine: Machine,
) -> None:
    machine.has(ipv4, ipv6)
    facts = read_host_facts()
    assert (facts.is_ipv6, facts.has_ipv6) == (is_ipv6, has_ipv6)


def test_all_addresses_are_told_canonically(machine: Machine) -> None:
    machine.has(ETH0_IPV4 + LO_IPV4 + TPROXY_ROUTE, LO_IPV6 + OURS_IPV6 + ETH0_IPV6)
    assert local_addresses() == {"127.0.0.1", "10.77.0.2", "::1", "::6", "fd77::2"}


def test_a_kernel_without_ipv6_has_no_addresses_of_it(machine: Machine) -> None:
    machine.ipv4.write_text(ETH0_IPV4, encoding="ascii")
    assert local_addresses() == {"10.77.0.2"}


def test_addresses_that_cannot_be_read_are_told(machine: Machine) -> None:
    machine.ipv4.unlink()
    with pytest.raises(Unsupported, match=r"fib_trie.*mount /proc"):
        read_host_facts()
    machine.ipv4.mkdir()
    with pytest.raises(Unsupported, match=r"fib_trie.*mount /proc"):
        read_host_facts()


def test_servers_are_read_as_a_resolver_reads_them(machine: Machine) -> None:
    text = (
        "# nameserver 9.9.9.9\n"
        "search example.org\n"
        "nameserver 10.96.0.10\n"
        "nameserver\t  fd77:0:0::0A  ; the second\n"
        "nameserver 10.96.0.10\n"
        "nameserver fe80::1%eth0\n"
        "nameserver ::ffff:10.1.2.3\n"
        "nameserver 127.1#comment\n"
    )
    assert machine.resolves_with(text) == ("10.96.0.10", "fd77::a", "fe80::1", "10.1.2.3", "127.0.0.1")


@pytest.mark.parametrize(
    "line",
    ["", "nameserver", "nameserver ", " nameserver 10.0.0.1", "nameservers 10.0.0.1", "nameserver dns.example.org",
     "nameserver 10.0.0.256", "nameserver fd77::x", "nameserver \x00", "nameserver \xe9", "nameserver ;10.0.0.1"],
)  # fmt: skip
def test_lines_that_name_no_server_are_skipped(line: str, machine: Machine) -> None:
    assert machine.resolves_with(f"{line}\nnameserver 10.0.0.2\n") == ("10.0.0.2",)


def test_a_machine_without_resolv_conf_has_no_servers(machine: Machine) -> None:
    assert not machine.resolv.exists()
    assert read_host_facts().nameservers == ()


def test_facts_count_in_layout_current(machine: Machine) -> None:
    machine.has(LO_IPV4, ETH0_IPV6)
    machine.resolv.write_text("nameserver fd77::a\n", encoding="ascii")
    settings = read_settings({"redirect_dns": "true"}, {}, CURRENT)
    assert (settings.ipv6, settings.nameservers, settings.redirect_dns) == (True, ("fd77::a",), True)


def test_the_old_layout_asks_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "read_host_facts", lambda: pytest.fail("asked"))
    assert read_settings({"proxy_uids": "5"}, {}).proxy_uids == (5,)


def test_a_dry_run_needs_no_privileges() -> None:
    done = call("istio-iptables", "-n", user=65534)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ISTIO_OUTPUT" in done.stdout
