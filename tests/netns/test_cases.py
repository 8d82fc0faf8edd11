"""The third use of the case table: each case applied for real in each way, and its connections opened with real packets."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.rules.kernel.engine import open_engine
from istio_init.rules.layout import CURRENT, ISTIO_1_0
from istio_init.rules.model import Family, Variant
from istio_init.rules.render import render
from tests.cases import CASES, CLIENT, CLIENT_IPV6, Case, Connection
from tests.cases_current import CASES_CURRENT
from tests.netns import namespaces
from tests.netns.sockets import Answer, connect, servers_for
from tests.privileges import need_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.rules.kernel.report import Report
    from istio_init.rules.model import Plan
    from tests.netns.namespaces import Namespace, Pod

TABLES = {ISTIO_1_0: CASES, CURRENT: CASES_CURRENT}
TOOLS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
NATIVE = {Family.IPV4: "ip", Family.IPV6: "ip6"}


class Way(NamedTuple):
    """One way to write rules.

    Attributes:
        variant: of iptables, whose tools show the rules; None for tables of nftables' own.
        formats: those of a dry run that describe these rules.
    """

    backend: str
    variant: Variant | None
    formats: tuple[str, ...] = ()

    def apply(self, namespace: Namespace, plan: Plan) -> Report:
        return namespace.call(lambda: open_engine(self.backend, self.variant).apply(plan))

    def remove(self, namespace: Namespace) -> Report:
        return namespace.call(open_engine(self.backend, self.variant).remove)

    def rules(self, namespace: Namespace) -> list[str]:
        """Give the rules of each family as the system's own tools show them."""
        if self.variant is not None:
            return [namespace.save(self.variant, family) for family in Family]
        tables = [("nft", "-s", "list", "table", NATIVE[family], "istio-init") for family in Family]
        return [namespace.run(*command, check=False).stdout for command in tables]

    def load(self, namespace: Namespace, plan: Plan, output_format: str) -> None:
        """Give what a dry run prints to the program that it is meant for."""
        if output_format == "restore":
            for family, tool in TOOLS.items():
                script = render(plan, "restore", (family,))
                namespace.run(f"{tool}-{self.variant}-restore", "--noflush", stdin=script)
        elif output_format == "commands":
            namespace.run("sh", "-e", stdin=render(plan, "commands", variant=self.variant or Variant.PLAIN))
        else:
            for _ in range(2):  # it replaces what is there
                namespace.run("nft", "-f", "-", stdin=render(plan, "nft"))


WAYS = {
    "restore-nft": Way("restore", Variant.NFT, ("restore", "commands")),
    "restore-legacy": Way("restore", Variant.LEGACY, ("restore",)),
    "libiptc": Way("libiptc", Variant.LEGACY),
    "nft": Way("nft", None, ("nft",)),
}
each_layout = pytest.mark.parametrize("layout", TABLES)


@contextmanager
def pod_for(case: Case) -> Iterator[Pod]:
    """Make a pod of the kind that a case is meant for."""
    need_namespaces()
    with namespaces.pod() as made:
        if case.facts.is_ipv6:
            made.inside.run("ip", "-4", "address", "flush", "dev", "eth0")
        if not case.facts.has_ipv6:
            made.inside.run("ip", "-6", "address", "flush", "dev", "eth0")
        yield made


@each_layout
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_each_case_is_written_obeyed_found_in_place_and_removed_and_is_what_a_dry_run_prints(
    way: Way, layout: str, subtests: pytest.Subtests
) -> None:
    for case in TABLES[layout]:
        with subtests.test(case.name), pod_for(case) as pod:
            assert_a_case_lives_its_life(pod, case, way)


def assert_a_case_lives_its_life(pod: Pod, case: Case, way: Way) -> None:
    def shown() -> tuple[list[str], str]:
        return way.rules(pod.inside), pod.inside.surroundings()

    plan, before = case.plan(), shown()
    assert not any(before[0])
    assert way.apply(pod.inside, plan).changed
    made = shown()
    assert_each_connection_reaches_whom_it_should(pod, case)
    assert not way.apply(pod.inside, plan).changed
    assert shown() == made != before
    for output_format in way.formats or ("",):
        assert way.remove(pod.inside).changed
        assert shown() == before
        if output_format:
            way.load(pod.inside, plan, output_format)
            assert way.rules(pod.inside) == made[0]
            # Only commands make what a plan needs besides rules.
            complete = output_format == "commands" or not (plan.routes or plan.addresses)
            report = way.apply(pod.inside, plan)
            assert (report.chains, report.rules, report.changed) == (0, 0, not complete)


def assert_each_connection_reaches_whom_it_should(pod: Pod, case: Case) -> None:
    with servers_for(pod, case.connections):
        answers = {connection: connect(pod, connection) for connection in case.connections}
    assert {c: answer.server for c, answer in answers.items()} == {c: c.outcome for c in answers}
    for connection, answer in answers.items():
        if connection.outcome.startswith("envoy") and connection.protocol == "tcp":
            assert_the_original_destination_is_readable(case, connection, answer)


def assert_the_original_destination_is_readable(case: Case, connection: Connection, answer: Answer) -> None:
    asked = f"{connection.address}:{connection.port}"
    if connection.inbound and case.plan().routes:  # TPROXY: the socket itself has both real ends
        assert answer.local == asked
        assert answer.client.startswith((f"{CLIENT}:", f"{CLIENT_IPV6}:"))
    else:
        assert answer.original == asked


@each_layout
def test_the_command_line_prints_and_writes_the_plan_of_each_case(layout: str, subtests: pytest.Subtests) -> None:
    way = WAYS["restore-nft"]
    for case in TABLES[layout]:
        with subtests.test(case.name), pod_for(case) as pod:
            before = pod.inside.surroundings()
            assert run(pod, case, "--dry-run")[0] == render(case.plan())
            assert not any(WAYS["restore-nft"].rules(pod.inside) + WAYS["restore-legacy"].rules(pod.inside))
            assert pod.inside.run("cat", "/proc/net/ip_tables_names").stdout == ""
            assert pod.inside.surroundings() == before
            assert "rules written" in run(pod, case)[1]
            assert not way.apply(pod.inside, case.plan()).changed
            assert "already in place" in run(pod, case)[1]


def run(pod: Pod, case: Case, *flags: str) -> tuple[str, str]:
    """Run the command of a case's layout, and give what it printed and what it logged."""
    if case.layout == ISTIO_1_0:
        done = pod.inside.istio_init(*flags, *case.flags, environment=case.environment)
    else:
        nameservers = case.facts.nameservers
        done = pod.inside.istio_iptables(*flags, *case.flags, environment=case.environment, nameservers=nameservers)
    return done.stdout, done.stderr


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_script_for_ipv6_is_refused_by_ipv4(pod: Pod, variant: str) -> None:
    script = render(CASES[0].plan(), "restore", (Family.IPV6,))
    assert pod.inside.run(f"iptables-{variant}-restore", "--noflush", stdin=script, check=False).returncode != 0
    assert pod.inside.save(variant) == ""
