"""Settings that nobody thought of: each backend must give them the same behaviour, and a walk must have foretold it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st

from istio_init.rules.walk import walk
from tests.cases import (
    APP,
    DATABASE,
    DIRECT,
    INTERNET,
    LOCALHOST,
    POD,
    POD_IPV6,
    PROXY,
    ROOT,
    SERVICE,
    Connection,
    into,
    out,
)
from tests.cases_current import (
    LOCALHOST_IPV6,
    NAMESERVER,
    NAMESERVER_IPV6,
    OTHER_NAMESERVER,
    SECOND_LOCALHOST,
    SECOND_PROXY,
    SERVICE_IPV6,
    THIRD_PROXY_GROUP,
    case_of,
    packet_of,
)
from tests.netns import namespaces
from tests.netns.changes import MEANS as OF_IPTABLES
from tests.netns.sockets import connect, servers_for
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from istio_init.rules.model import Plan

MEANS = {**OF_IPTABLES, "nft": (("--backend", "nft"), "nft")}
OWNERS = (APP, ROOT, PROXY, SECOND_PROXY, THIRD_PROXY_GROUP, (2000, 2000))
PROBES: tuple[Connection, ...] = (
    *(out(SERVICE, 80, "", owner) for owner in OWNERS),
    *(out(POD, 9080, "", owner) for owner in OWNERS),
    *(out(address, port, "") for address, port in ((INTERNET, 443), (DATABASE, 3306), (SERVICE_IPV6, 80), (POD_IPV6, 9080))),
    *(out(address, 9080, "") for address in (LOCALHOST, SECOND_LOCALHOST, LOCALHOST_IPV6)),
    *(out(address, 53, "", APP, "udp") for address in (NAMESERVER, OTHER_NAMESERVER, NAMESERVER_IPV6)),
    out(POD_IPV6, 9080, "", PROXY),
    out(NAMESERVER, 53, ""),
    out(NAMESERVER, 53, "", PROXY, "udp"),
    out(SERVICE, 5000, "", APP, "udp"),
    *(into(port, "") for port in (9080, 9081, 22)),
    into(9080, "", POD_IPV6),
    into(9080, "", protocol="udp"),
)


def lists(*words: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), max_size=3, unique=True).map(",".join)


SWITCH = st.just("true")
FLAGS: dict[str, st.SearchStrategy[str | None]] = {
    "-p": st.just("15101"),
    "-z": st.just("15106"),
    "-u": st.sampled_from(("1337", "1337,1338", "1338,1337,4321")),
    "-g": st.sampled_from(("1337", "1337,3000")),
    "-m": st.sampled_from(("REDIRECT", "TPROXY")),
    "-t": st.sampled_from(("1", "0xffffffff")),
    "-r": st.just("4242"),
    "-b": st.just("*") | lists("9080", "9081", "20-25", "9000:9090"),
    "-d": lists("9080", "9081", "22", "9081-9099"),
    "-i": st.just("*") | lists("10.96.0.0/16", "203.0.113.7", "10.0.0.0/8", "127.0.0.2", "fd96::/64", "0.0.0.0/0", "::/0"),
    "-x": lists("10.1.0.0/16", "10.96.0.10", "203.0.113.0/24", "fd96::10"),
    "-q": lists("80", "443", "3306", "9080", "1-100"),
    "-o": lists("80", "443", "3306", "53"),
    "--exclude-inbound-cidrs": lists("10.77.0.0/30", "203.0.113.0/24", "fd77::1"),
    "--exclude-outbound-ports-for-uids": lists("tcp:80-443:1000", "tcp:3306:0", "udp:53:1000"),
    "--dns-port": st.just("15153"),
    "--jump": st.sampled_from(("first", "last")),
    "-c": lists("eth0", "eth1", "net+"),
    "-k": lists("vm0", "eth0", "vm+"),
    "--redirect-dns": SWITCH,
    "--capture-all-dns": SWITCH,
    "--forward-dns": SWITCH,
    "--drop-invalid": SWITCH,
    "--dual-stack": SWITCH,
    "ISTIO_OUTBOUND_OWNER_GROUPS": st.just("*") | lists("1000", "2000", "3000"),
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": lists("1000", "2000"),
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": st.sampled_from(("127.0.0.0/8", "127.0.0.2/32")),
}


def foretold(plan: Plan, probe: Connection) -> str:
    outcome = walk(plan, packet_of(probe)).outcome
    return DIRECT if outcome is None else f"envoy:{outcome.port}"


# Each run draws anew; a failure shows its example, and how to repeat it. One takes seconds, and so to shrink it, minutes.
@settings(max_examples=8, deadline=None, database=None, print_blob=True, phases=(Phase.explicit, Phase.generate))
@example({"-m": "TPROXY", "-b": "*", "-i": "*", "--dual-stack": "true", "--redirect-dns": "true", "-u": "1337,1338"})
@example({"-c": "net+", "--dual-stack": "true"})  # names of interfaces count in all their letters
@given(st.fixed_dictionaries({}, optional=FLAGS))
def test_every_backend_does_to_connections_what_a_trace_foretells(values: dict[str, str | None]) -> None:
    need_namespaces()
    # Both want what comes from there, and the kernel gives it to neither.
    assume(not (values.get("-m") == "TPROXY" and "eth0" in str(values.get("-k"))))
    case = case_of("random", values)
    probes = [probe._replace(outcome=foretold(case.plan(), probe)) for probe in PROBES]
    for name, (run, _) in MEANS.items():
        with namespaces.pod() as pod:
            pod.inside.istio_iptables(*run, *case.flags, environment=case.environment, nameservers=case.facts.nameservers)
            with servers_for(pod, probes):
                seen = {probe: connect(pod, probe).server for probe in probes}
            assert {(name, probe): outcome for probe, outcome in seen.items() if outcome != probe.outcome} == {}
