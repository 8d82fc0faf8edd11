"""Third-party chains that redirect connections before ours see them, and rules of ours that stand first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cases import POD, SERVICE, Connection, into, out
from tests.netns.changes import MEANS
from tests.netns.sockets import connect, servers_for
from tests.netns.test_change import seen_while_changing

if TYPE_CHECKING:
    from tests.netns.namespaces import Namespace, Pod
    from tests.netns.test_change import Means

PORT, CONTAINER = 8080, 9999  # what Docker publishes, and where it leads
REDIRECT = ("-u", "1337", "-i", "*", "-b", "*")
FIRST = (*REDIRECT, "--jump", "first")
CURRENT = ("--layout", "current", "-z", "15001")
INBOUND, OUTBOUND = into(PORT, "envoy:15001"), out(SERVICE, 80, "envoy:15001")
# Native nftables stands beside either variant.
NATIVE = {"native": (("--backend", "nft"), "nft"), "native-beside-legacy": (("--backend", "nft"), "legacy")}
each_way = pytest.mark.parametrize(("run", "variant"), [*MEANS.values(), *NATIVE.values()], ids=[*MEANS, *NATIVE])
each_layout = pytest.mark.parametrize("flags", [(), CURRENT], ids=["istio-1.0", "current"])


def publish(namespace: Namespace, variant: str) -> None:
    """Publish a port as Docker does, here for a server in the pod itself, and divert outbound connections likewise."""
    tool = f"iptables-{variant}"
    to_container = ("-j", "DNAT", "--to-destination", f"{POD}:{CONTAINER}")
    for rule in (
        ("-N", "DOCKER"),
        ("-A", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER"),
        ("-A", "DOCKER", "!", "-i", "docker0", "-p", "tcp", "--dport", str(PORT), *to_container),
        ("-A", "OUTPUT", "-d", SERVICE, "-p", "tcp", *to_container),
    ):
        namespace.run(tool, "-t", "nat", *rule)


def servers(pod: Pod) -> dict[Connection, str]:
    """Open both connections, and tell who got each; the server of the published port counts as `direct`."""
    connections = (INBOUND, OUTBOUND)
    with servers_for(pod, [*connections, into(CONTAINER, "")]):
        return {connection: connect(pod, connection).server for connection in connections}


def foreign_of(namespace: Namespace, variant: str) -> list[str]:
    return [line for line in namespace.save(variant).splitlines() if "ISTIO_" not in line]


@each_way
@each_layout
def test_what_a_third_party_chain_diverts_is_captured_where_ours_stand_first(
    pod: Pod, run: tuple[str, ...], variant: str, flags: tuple[str, ...]
) -> None:
    publish(pod.inside, variant)
    foreign, before = foreign_of(pod.inside, variant), pod.inside.save(variant)
    pod.inside.istio_init(*run, *FIRST, *flags)
    assert servers(pod) == {INBOUND: "envoy:15001", OUTBOUND: "envoy:15001"}
    assert foreign_of(pod.inside, variant) == foreign
    assert "already in place" in pod.inside.istio_init(*run, *FIRST, *flags).stderr
    pod.inside.istio_init("clean", *run)
    assert pod.inside.save(variant) == before


def test_the_place_of_ours_decides_who_gets_a_connection_and_can_be_changed(pod: Pod, means: Means) -> None:
    run, variant = means
    publish(pod.inside, variant)
    for flags, seen in ((REDIRECT, "direct"), (FIRST, "envoy:15001"), (REDIRECT, "direct")):
        assert "rules written" in pod.inside.istio_init(*run, *flags).stderr
        assert servers(pod) == {INBOUND: seen, OUTBOUND: seen}


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize(("flags", "seen"), [(REDIRECT, "direct"), (FIRST, "envoy:15001")], ids=["last", "first"])
def test_chains_that_come_after_native_ones_run_before_them_if_both_have_the_usual_priority(
    pod: Pod, variant: str, flags: tuple[str, ...], seen: str
) -> None:
    pod.inside.istio_init("--backend", "nft", *flags)
    publish(pod.inside, variant)
    assert servers(pod) == {INBOUND: seen, OUTBOUND: seen}


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_third_party_chain_that_comes_later_and_ahead_is_behind_ours_after_the_next_apply(pod: Pod, variant: str) -> None:
    run = ("--iptables-variant", variant)
    pod.inside.istio_init(*run, *FIRST)
    publish(pod.inside, variant)
    for chain in ("PREROUTING", "OUTPUT"):
        rules = [line for line in pod.inside.save(variant).splitlines() if line.startswith(f"-A {chain} ")]
        (theirs,) = [line.split()[2:] for line in rules if "ISTIO_" not in line]
        pod.inside.run(f"iptables-{variant}", "-t", "nat", "-I", chain, *theirs)
    assert servers(pod) == {INBOUND: "direct", OUTBOUND: "direct"}
    again = pod.inside.istio_init(*run, *FIRST).stderr
    assert "rules written" in again
    assert "third-party rule takes precedence" not in again
    assert servers(pod) == {INBOUND: "envoy:15001", OUTBOUND: "envoy:15001"}
    assert "already in place" in pod.inside.istio_init(*run, *FIRST).stderr


@each_layout
@each_way
def test_no_connection_escapes_while_ours_move(pod: Pod, run: tuple[str, ...], variant: str, flags: tuple[str, ...]) -> None:
    seen = seen_while_changing(pod, ((*run, *flags), variant), REDIRECT, FIRST)
    assert seen == {"envoy:15001"}


def test_where_ours_stand_last_a_warning_names_the_flag_that_puts_them_first(pod: Pod) -> None:
    publish(pod.inside, "nft")
    told = [line for line in pod.inside.istio_init(*REDIRECT).stderr.splitlines() if "takes precedence" in line]
    assert ["--dport 8080" in line for line in told] == [True, False]
    assert all(line.endswith("shows it), or put ours ahead of it (--jump first)") for line in told)
