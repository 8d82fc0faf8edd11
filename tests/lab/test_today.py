"""A pod of today, with its init container's own flags: each mode, each family, each means, with DNS captured or not."""

from __future__ import annotations

import itertools
import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from istio_init.lab.listeners import bracketed
from istio_init.lab.pods import CONTROL, DNS
from istio_init.lab.settings import APP_PORT, CONTROL_PLANE, LabSettings, client_pod, mesh_pods, vips
from istio_init.lab.world import family_of
from istio_init.rules.model import Family
from tests.lab.live import ADMIN, Live, live, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

IPV4, IPV6 = Family.IPV4, Family.IPV6
MODES = {"REDIRECT": (IPV4, IPV6), "TPROXY": (IPV6, IPV4)}  # and the order of the families of dual stack
MEANS = (("restore", "nft"), ("restore", "legacy"), ("nft", "auto"))
DNS_FLAGS: tuple[tuple[str, ...], ...] = ((), ("redirect_dns",), ("redirect_dns", "capture_all_dns"))
CURL_FLAGS = {IPV4: "-4", IPV6: "-6"}
SOURCES = {IPV4: "127.0.0.6", IPV6: "[::6]"}
RECORDS = {IPV4: "A", IPV6: "AAAA"}
NOBODY = {IPV4: "192.0.2.53", IPV6: "2001:db8::53"}  # for documentation (RFC 5737, RFC 3849)
REVIEWS = "reviews.default.svc.cluster.local"
OUTBOUND = f"cluster.outbound|{APP_PORT}||{REVIEWS}.upstream_rq_completed"
PASSTHROUGH = "cluster.PassthroughCluster.upstream_cx_total"
ASK = """
import sys, dnslib
server, name, kind, timeout = sys.argv[1:]
answer = dnslib.DNSRecord.question(name, kind).send(server, timeout=float(timeout), ipv6=":" in server)
print(*(record.rdata for record in dnslib.DNSRecord.parse(answer).rr))
"""


class Way(NamedTuple):
    """One way to set up a pod."""

    mode: str
    families: tuple[Family, ...]
    means: tuple[str, str]
    dns: tuple[str, ...]

    @property
    def name(self) -> str:
        backend, variant = self.means
        means = "nftables" if backend == "nft" else f"iptables_{variant}"
        return "-".join((self.mode, "+".join(self.families), means, (self.dns or ("no_dns",))[-1]))

    @property
    def settings(self) -> LabSettings:
        interception = (("mode", self.mode), *((name, "true") for name in self.dns))
        return LabSettings(
            layout="current",
            backend=self.means[0],
            variant=self.means[1],
            families=self.families,
            interception=interception,
        )


def ways() -> list[Way]:
    """List each mode with each choice of families and each means; the third of DNS shifts, so that each pair occurs."""
    made = []
    for (m, (mode, both)), (f, families), (b, means) in itertools.product(
        enumerate(MODES.items()), enumerate(((IPV4,), (IPV6,), ())), enumerate(MEANS)
    ):
        made.append(Way(mode, families or both, means, DNS_FLAGS[(m + f + b) % len(DNS_FLAGS)]))
    return made


class Today(NamedTuple):
    """A lab, and how it was set up."""

    way: Way
    live: Live

    def curl(self, pod: str, family: Family, url: str, *flags: str) -> dict[str, Any]:
        """Ask a demo app, by an address of a family."""
        return self.live.app(pod, url, CURL_FLAGS[family], *flags)

    def inbound(self, family: Family) -> int:
        """Count the requests that the reviews' Envoy has handed to its app by a family."""
        subset = "" if family is self.way.families[0] else family
        return self.live.stat("reviews", f"cluster.inbound|{APP_PORT}|{subset}|.upstream_rq_completed")

    def logged(self, pod: str, request: str) -> dict[str, Any]:
        """Find a request in the access log of a pod's Envoy, which writes out now and then, and when told to."""
        self.live.curl(pod, f"{ADMIN}/reopen_logs", "-XPOST")
        wait_for(f"{request} in the log of {pod}", lambda: request in self.live.log(pod))
        (line,) = (line for line in self.live.log(pod).splitlines() if request in line)
        entry: dict[str, Any] = json.loads(line)
        return entry

    def expected_caller(self, address: str) -> str:
        """Give what an app sees of a client at an address."""
        return bracketed(address) if self.way.mode == "TPROXY" else SOURCES[family_of(address)]


@pytest.fixture(scope="module", params=ways(), ids=lambda way: way.name)
def today(request: pytest.FixtureRequest) -> Iterator[Today]:
    with live(request.param.settings) as made:
        yield Today(request.param, made)


def of_family(addresses: tuple[str, ...], family: Family) -> str:
    (address,) = (address for address in addresses if family_of(address) is family)
    return address


def host(place: str) -> str:
    return place.rpartition(":")[0]


def test_each_pair_of_values_is_set_up_somewhere() -> None:
    values = [
        (way.mode, len(way.families) * "+" + way.families[0] * (len(way.families) == 1), way.means, way.dns)
        for way in ways()
    ]
    for one, other in itertools.combinations(range(4), 2):
        pairs = {(way[one], way[other]) for way in values}
        assert len(pairs) == len({way[one] for way in values}) * len({way[other] for way in values})


def test_istio_init_is_called_as_todays_injector_calls_it(today: Today) -> None:
    words = " ".join(word or "''" for word in today.live.lab.status()["rules"])
    flags = f"-p 15001 -z 15006 -u 1337 -m {today.way.mode} -i * -x '' -b * -d 15090,15021,15020"
    assert words.startswith("istio-iptables ")
    assert flags in words
    assert ("--dual-stack=true" in words) == (len(today.way.families) > 1)


def test_a_request_to_a_service_passes_both_envoys(today: Today) -> None:
    for family in today.way.families:
        request = f"to-a-service-by-{family}"
        before = today.live.stat("productpage", OUTBOUND), today.inbound(today.way.families[0])
        answer = today.curl("productpage", family, f"http://reviews:{APP_PORT}/", "-H", f"x-request-id: {request}")
        after = today.live.stat("productpage", OUTBOUND), today.inbound(today.way.families[0])
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]
        assert (answer["service"], answer["headers"]["x-request-id"]) == ("reviews", request)
        # Between the pods, Envoy takes the first address that a pod has.
        productpage, reviews = mesh_pods(today.way.settings)
        assert host(answer["caller"]) == today.expected_caller(productpage.address)
        asked = of_family(vips(today.way.settings, 1), family)
        assert host(today.logged("productpage", request)["downstream_local_address"]) == bracketed(asked)
        assert host(today.logged("reviews", request)["downstream_local_address"]) == bracketed(reviews.address)


def test_a_connection_to_a_pod_is_captured_at_both_ends(today: Today) -> None:
    productpage = mesh_pods(today.way.settings)[0]
    for family in today.way.families:
        before = today.live.stat("productpage", PASSTHROUGH), today.inbound(family)
        answer = today.curl("productpage", family, f"http://reviews-v1:{APP_PORT}/")
        after = today.live.stat("productpage", PASSTHROUGH), today.inbound(family)
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]
        assert host(answer["caller"]) == today.expected_caller(of_family(productpage.addresses, family))


def test_a_connection_from_outside_the_mesh_is_captured(today: Today) -> None:
    client = client_pod(today.way.settings)
    for family in today.way.families:
        before = today.inbound(family)
        answer = today.curl("client", family, f"http://reviews-v1:{APP_PORT}/")
        assert today.inbound(family) == before + 1
        assert host(answer["caller"]) == today.expected_caller(of_family(client.addresses, family))


def test_an_excluded_port_is_reached_directly(today: Today) -> None:
    url = "http://reviews-v1:15090/stats/prometheus"
    before = today.live.stat("reviews", "cluster.InboundPassthroughCluster.upstream_cx_total")
    assert "envoy_server_live" in today.live.curl("client", url, CURL_FLAGS[today.way.families[0]])
    assert today.live.stat("reviews", "cluster.InboundPassthroughCluster.upstream_cx_total") == before


def test_names_come_from_the_proxys_resolver_where_dns_is_captured(today: Today) -> None:
    assert "reviews" not in today.live.run("productpage", "cat", "/etc/hosts").stdout
    productpage = mesh_pods(today.way.settings)[0]
    for family in today.way.families:
        today.curl("productpage", family, f"http://reviews:{APP_PORT}/")
        today.curl("productpage", family, f"http://reviews-v1:{APP_PORT}/")
    asked = today.live.log(CONTROL_PLANE, DNS).splitlines()
    of_productpage = [
        line for line in asked if f"name={REVIEWS} " in line and line.endswith(f"client={productpage.address}")
    ]
    if today.way.dns:
        assert f"dns answered name={REVIEWS} " in today.live.log("productpage", DNS)
        assert "dns forwarded name=reviews-v1 " in today.live.log("productpage", DNS)
        assert of_productpage == []
    else:
        assert DNS not in today.live.lab.pod("productpage")["programs"]
        assert of_productpage != []


def test_requests_to_other_name_servers_are_captured_only_if_all_are(today: Today) -> None:
    captured = "capture_all_dns" in today.way.dns
    for family in today.way.families:
        words = (sys.executable, "-c", ASK, NOBODY[family], REVIEWS, RECORDS[family], "5" if captured else "0.5")
        asked = today.live.run("productpage", *words, check=captured)
        assert asked.stdout.strip() == (of_family(vips(today.way.settings, 1), family) if captured else "")


def test_addresses_are_used_without_a_search_for_others_that_have_them(today: Today) -> None:
    for plan in mesh_pods(today.way.settings):
        listed = today.live.run(
            plan.name, "ip", "-6", "-oneline", "address", "show", "dev", "eth0", "scope", "global"
        ).stdout
        expected = [address for address in plan.addresses if family_of(address) is IPV6]
        assert [line.split()[3] for line in listed.splitlines() if " nodad " in line] == [f"{one}/64" for one in expected]


def test_the_control_plane_knows_a_pod_by_its_first_address_and_all_of_them(today: Today) -> None:
    productpage = mesh_pods(today.way.settings)[0]
    node = today.live.admin("productpage", "/server_info")["node"]
    assert node["id"].split("~")[1] == productpage.address
    assert node["metadata"]["INSTANCE_IPS"] == ",".join(productpage.addresses)
    assert f"node={node['id']}" in today.live.log(CONTROL_PLANE, CONTROL)
    types = today.live.discovery(productpage.name)
    assert {"CDS", "EDS", "LDS", "RDS"} <= set(types)
    assert [how["nack"] for how in types.values()] == [None] * len(types)
