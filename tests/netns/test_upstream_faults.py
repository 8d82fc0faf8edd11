"""Faults of today's `istio-iptables` that layout current does not have. Where it is cheap, the old rules show the fault."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from istio_init.rules.layout import ISTIO_1_30, LAYOUTS
from istio_init.rules.model import Table
from istio_init.rules.options import OPTIONS
from tests.cases import CLIENT, DATABASE, DIRECT, POD, POD_IPV6, PROXY, PROXY_GROUP, SERVICE, into, out
from tests.cases_current import ENVIRONMENT, INBOUND, SECOND_PROXY, THIRD_PROXY_GROUP
from tests.netns.namespaces import Namespace
from tests.netns.peers import MACHINE, Relay, connect_from, family_of, virtual_machine
from tests.netns.sockets import connect, servers_for
from tests.netns.test_change import add_foreign_rules
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.netns.namespaces import Pod

Means = tuple[tuple[str, ...], str]

TPROXY = ("-m", "TPROXY", "-i", "*", "-b", "*", "--dual-stack", "--drop-invalid", "-c", "eth1", "-k", "vm0,vm1")
SEVERAL_OWNERS = ("-u", "1337,1338", "-g", "1337,3000", "-i", "*")
OWNERS = (PROXY, SECOND_PROXY, PROXY_GROUP, THIRD_PROXY_GROUP)
FAMILIES = ("ipv4", "ipv6")
TABLES_OF_IPTABLES = tuple(Table)  # iptables-nft makes tables of nf_tables, which stay when they are empty
# What each variable may not be; where it is a list, one item of it is bad.
MALFORMED = {
    "INBOUND_CAPTURE_PORT": "65536",
    "INBOUND_TUNNEL_PORT": "0",
    "PROXY_UID": "1337,nobody-of-that-name",
    "PROXY_GID": "-1",
    "ISTIO_INBOUND_INTERCEPTION_MODE": "redirect",
    "ISTIO_INBOUND_TPROXY_MARK": "0x100000000",
    "ISTIO_INBOUND_TPROXY_ROUTE_TABLE": "254",
    "ISTIO_INBOUND_PORTS": "80,http",
    "ISTIO_LOCAL_EXCLUDE_PORTS": "90-80",
    "ISTIO_SERVICE_CIDR": "10.0.0.0/33",
    "ISTIO_SERVICE_EXCLUDE_CIDR": "*",
    "ISTIO_OUTBOUND_PORTS": "80 -j ACCEPT",
    "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE": "1,,x",
    "ISTIO_EXCLUDE_INTERFACES": "eth0 -j ACCEPT",
    "KUBE_VIRT_INTERFACES": "an-interface-too-long",
    "REDIRECT_DNS": "yes",
    "CAPTURE_ALL_DNS": "2",
    "DROP_INVALID": "on",
    "DUAL_STACK": "maybe",
    "ISTIO_OUTBOUND_OWNER_GROUPS": ",".join(map(str, range(65))),
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "*",
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "10.0.0.0/8",
}


@pytest.fixture
def bare() -> Iterator[Namespace]:
    """A network namespace as the kernel makes it: without a network card, and with lo down."""
    need_namespaces()
    namespace = Namespace()
    yield namespace
    namespace.close()


def everything(namespace: Namespace) -> list[str]:
    """Give all that an apply may write, with whatever it writes."""
    saved = [namespace.save(variant, family) for variant in ("nft", "legacy") for family in FAMILIES]
    tables = namespace.run("nft", "list", "tables").stdout.splitlines()
    saved += [table for table in tables if table.split()[-1] not in TABLES_OF_IPTABLES]
    for words in (("rule",), ("route", "show", "table", "all"), ("-oneline", "address", "show", "dev", "lo")):
        for family in ("-4", "-6"):
            lines = namespace.run("ip", family, *words).stdout.splitlines()
            saved += [line for line in lines if "fe80:" not in line]  # the kernel adds these in its own time
    return saved


def test_each_of_several_owners_has_its_calls_to_its_own_pod_captured(pod: Pod, means: Means) -> None:
    connections = [out(POD, 9080, INBOUND, owner) for owner in OWNERS]
    pod.inside.istio_iptables(*means[0], *SEVERAL_OWNERS)
    with servers_for(pod, connections):
        assert [connect(pod, one).server for one in connections] == [INBOUND] * 4
        assert connect(pod, out(POD, 9080, DIRECT)).server == DIRECT


@pytest.mark.parametrize("variable", ["ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"])
def test_as_many_groups_as_are_allowed_fit_in_their_rules(pod: Pod, means: Means, variable: str) -> None:
    groups = ",".join(map(str, range(2000, 2064)))
    words = (*means[0], "-u", ",".join(map(str, range(1337, 1361))), "-i", "*", "--dual-stack")
    for expected in ("rules written", "already in place"):
        assert expected in pod.inside.istio_iptables(*words, environment={variable: groups}).stderr


def test_in_the_old_order_the_first_users_rule_hides_those_of_the_others(pod: Pod) -> None:
    connections = [out(POD, 9080, DIRECT, owner) for owner in OWNERS]
    script = pod.inside.istio_iptables("--dry-run", "--family", "ipv4", *SEVERAL_OWNERS).stdout.splitlines()
    first = next(number for number, line in enumerate(script) if "--uid-owner 1337 -j ISTIO_IN_REDIRECT" in line)
    script.insert(first + 1, "-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN")
    pod.inside.run("iptables-nft-restore", "--noflush", stdin="\n".join(script) + "\n")
    with servers_for(pod, [*connections, out(POD, 9080, INBOUND)]):
        assert [connect(pod, one).server for one in connections] == [INBOUND, DIRECT, DIRECT, DIRECT]


def test_a_second_run_of_tproxy_succeeds_and_captures(pod: Pod, means: Means) -> None:
    connections = [into(9080, INBOUND), into(9080, INBOUND, POD_IPV6), out(SERVICE, 80, "envoy:15001")]
    for expected in ("rules written", "already in place"):
        assert expected in pod.inside.istio_iptables(*means[0], *TPROXY).stderr
        with servers_for(pod, connections):
            assert [connect(pod, one).server for one in connections] == [one.outcome for one in connections]


@pytest.mark.parametrize("command", [("clean",), ("istio-iptables", "--cleanup-only")], ids=["clean", "cleanup-only"])
def test_clean_removes_routes_rules_and_addresses_and_nothing_else(pod: Pod, means: Means, command: tuple[str, ...]) -> None:
    add_foreign_rules(pod.inside, means[1])
    before = everything(pod.inside)
    pod.inside.istio_iptables(*means[0], *TPROXY, "--redirect-dns", "--capture-all-dns")
    assert everything(pod.inside) != before
    pod.inside.istio_init(*command, *means[0])
    assert everything(pod.inside) == before


def test_a_dry_run_of_a_clean_prints_the_scripts_that_would_do_it_and_changes_nothing(pod: Pod) -> None:
    empty = pod.inside.istio_iptables("--cleanup-only", "--dry-run")
    assert (empty.stdout, "there is nothing to remove" in empty.stderr) == ("", True)
    add_foreign_rules(pod.inside, "nft")
    before = everything(pod.inside)
    pod.inside.istio_iptables("--iptables-variant", "nft", *TPROXY, "-t", "77")
    written = everything(pod.inside)
    script = pod.inside.istio_iptables("--cleanup-only", "--dry-run").stdout
    assert everything(pod.inside) == written
    ipv4, _, rest = script.partition("# iptables-nft, ipv6\n")
    ipv6, _, commands = rest.partition("# policy routes and addresses\n")
    pod.inside.run("iptables-nft-restore", "--noflush", stdin=ipv4)
    pod.inside.run("ip6tables-nft-restore", "--noflush", stdin=ipv6)
    pod.inside.run("sh", "-e", stdin=commands)
    assert everything(pod.inside) == before


@pytest.mark.parametrize("backend", ["nft", "libiptc"])
def test_a_dry_run_of_a_clean_finds_the_rules_of_each_backend(pod: Pod, backend: str) -> None:
    pod.inside.istio_iptables("--backend", backend, "-i", "*", "--dual-stack")
    written = everything(pod.inside)
    script = pod.inside.istio_iptables("--cleanup-only", environment={"DRY_RUN": "true"}).stdout
    assert ("delete table ip6 istio-init" if backend == "nft" else "# iptables-legacy, ipv6\n*nat\n") in script
    assert "ip -6 addr del ::6/128 dev lo" in script
    assert everything(pod.inside) == written
    if backend == "nft":
        pod.inside.run("nft", "-f", "-", stdin=script.partition("# policy")[0])
        assert "istio-init" not in "".join(everything(pod.inside))


def test_clean_removes_what_a_run_with_other_flags_made(pod: Pod, means: Means) -> None:
    before = everything(pod.inside)
    for flags in ((*TPROXY, "-t", "42", "-r", "4242"), ("-b", "80"), ("-k", "vm7", "-i", "*", "-c", "x+")):
        pod.inside.istio_iptables(*means[0], *flags)
    pod.inside.istio_init("clean", *means[0])
    assert everything(pod.inside) == before


@pytest.mark.parametrize("backend", ["restore", "libiptc", "nft"])
def test_a_dry_run_needs_no_network_card_and_writes_nothing(bare: Namespace, backend: str) -> None:
    before = everything(bare)
    printed = bare.istio_iptables("--dry-run", "--backend", backend, *TPROXY, "--redirect-dns", "--capture-all-dns").stdout
    assert "ISTIO_OUTPUT_DNS" in printed
    assert everything(bare) == before
    assert bare.run("ip", "-oneline", "link").stdout.count("\n") == 1


def test_a_dry_run_is_one_with_nftables_too(pod: Pod) -> None:
    before = everything(pod.inside)
    for flags in (("--dry-run",), ("--dry-run", "--format", "json")):
        printed = pod.inside.istio_iptables(*flags, "--native-nftables", *TPROXY).stdout
        assert "ISTIO_OUTPUT" in printed
    assert json.loads(printed)["layout"] == "current"
    assert everything(pod.inside) == before


def test_every_malformed_variable_is_an_error_that_names_it_and_nothing_is_touched(pod: Pod) -> None:
    before = everything(pod.inside)
    for variable, text in MALFORMED.items():
        refused = pod.inside.istio_iptables(environment={**ENVIRONMENT, variable: text}, check=False)
        assert (variable, refused.returncode) == (variable, 2)
        assert f"${variable}" in refused.stderr
    assert everything(pod.inside) == before


def test_there_is_a_malformed_value_for_every_variable() -> None:
    read = {option.name: LAYOUTS[ISTIO_1_30].variables_of(option) for option in OPTIONS}
    assert [name for name, variables in read.items() if variables and not set(variables) & set(MALFORMED)] == []


def test_rules_in_another_order_are_fixed(pod: Pod) -> None:
    """Today's tool takes rules that are there for rules that apply."""
    excluded, captured = out(DATABASE, 3306, DIRECT), out(SERVICE, 80, "envoy:15001")
    flags = ("-i", "*", "-x", "10.1.0.0/16", "--iptables-variant", "nft")
    pod.inside.istio_iptables(*flags)
    rule = ("-d", "10.1.0.0/16", "-j", "RETURN")
    pod.inside.run("iptables-nft", "-t", "nat", "-D", "ISTIO_OUTPUT", *rule)
    pod.inside.run("iptables-nft", "-t", "nat", "-A", "ISTIO_OUTPUT", *rule)
    with servers_for(pod, [excluded, captured]):
        assert connect(pod, excluded).server == "envoy:15001"
        assert "already in place" not in pod.inside.istio_iptables(*flags).stderr
        assert connect(pod, excluded).server == DIRECT
        assert connect(pod, captured).server == "envoy:15001"


def test_under_tproxy_the_proxys_connection_to_its_app_would_come_back_to_it_by_the_old_rules(pod: Pod) -> None:
    pod.inside.istio_iptables("--iptables-variant", "nft", *TPROXY)
    old = ("-o", "lo", "-p", "tcp", "-m", "mark", "--mark", "1337", "-j", "RETURN")
    pod.inside.run("iptables-nft", "-t", "nat", "-D", "ISTIO_OUTPUT", *old)
    with (
        servers_for(pod, [out(POD, 9080, DIRECT)]),
        Relay(pod, PROXY, family_of(POD)) as relay,
        pytest.raises(ValueError, match="Expecting value"),  # no answer at all
    ):
        connect_from(pod.outside, (CLIENT, 40000), POD, 9080)
    assert relay.failure


def test_text_of_users_cannot_become_rules(pod: Pod) -> None:
    before = everything(pod.inside)
    for flag, text in (
        ("-p", "15001 -j ACCEPT"),
        ("-u", "1337\n-A OUTPUT -j ACCEPT"),
        ("-c", "eth0 -j ACCEPT"),
        ("-k", "eth0\nCOMMIT"),
        ("-o", "80\n-A OUTPUT -j ACCEPT"),
        ("-q", "$(id)"),
        ("-e", "15008;"),
    ):
        refused = pod.inside.istio_iptables(flag, text, check=False)
        assert (flag, refused.returncode) == (flag, 2)
        assert flag in refused.stderr
    assert everything(pod.inside) == before


def test_a_foreign_rule_put_before_one_that_belongs_at_the_head_stands_behind_it_again(pod: Pod) -> None:
    flags = ("--iptables-variant", "nft", "-i", "*", "-b", "*", "-k", "vm0")
    shadowing = ("-i", "vm0", "-p", "tcp", "-j", "ACCEPT")
    with virtual_machine(pod, "vm0") as machine, servers_for(pod, [out(SERVICE, 80, "envoy:15001")]):
        pod.inside.istio_iptables(*flags)
        pod.inside.run("iptables-nft", "-t", "nat", "-I", "PREROUTING", *shadowing)
        assert connect_from(machine, (MACHINE, 0), SERVICE, 80).server == DIRECT
        assert "already in place" not in pod.inside.istio_iptables(*flags).stderr
        assert connect_from(machine, (MACHINE, 0), SERVICE, 80).server == "envoy:15001"
    assert f"-A PREROUTING {' '.join(shadowing)}" in pod.inside.save("nft")


def test_a_foreign_rule_that_shadows_ours_is_told(pod: Pod, means: tuple[tuple[str, ...], str]) -> None:
    flags, variant = means
    shadowing = ("-d", f"{SERVICE}/32", "-p", "tcp", "-j", "ACCEPT")
    with servers_for(pod, [out(SERVICE, 80, "envoy:15001")]):
        assert "takes precedence over ours" not in pod.inside.istio_iptables(*flags, "-i", "*", "-b", "*").stderr
        pod.inside.run(f"iptables-{variant}", "-t", "nat", "-I", "OUTPUT", *shadowing)
        told = pod.inside.istio_iptables(*flags, "-i", "*", "-b", "*").stderr
        assert "takes precedence over ours in nat OUTPUT (ipv4)" in told
        assert " ".join(shadowing) in told
        assert "already in place" in told
        assert connect(pod, out(SERVICE, 80, "")).server == DIRECT
    pod.inside.istio_iptables(*flags, "--cleanup-only")
    assert f"-A OUTPUT {' '.join(shadowing)}" in pod.inside.save(variant)
