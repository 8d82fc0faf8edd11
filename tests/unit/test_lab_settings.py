"""What a lab consists of: the families of its addresses, the names in it, and what its pods are called with."""

from __future__ import annotations

import shlex

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.lab.names import all_names, hosts_file, resolv_conf, service_names
from istio_init.lab.pods import DNS, programs, world
from istio_init.lab.settings import LabSettings, client_pod, control_pod, mesh_pods, parse_families, proxy_environment
from istio_init.lab.world import World
from istio_init.rules.model import Family

IPV4, IPV6 = Family.IPV4, Family.IPV6
DUAL = LabSettings(layout="current", families=(IPV4, IPV6))


@pytest.mark.parametrize(
    ("text", "families"),
    [
        ("IPv4", (IPV4,)),
        ("ipv6", (IPV6,)),
        ("IPv4,IPv6", (IPV4, IPV6)),
        ("IPV6, ipv4", (IPV6, IPV4)),
    ],
)
def test_families_have_kubernetes_names_in_any_case(text: str, families: tuple[Family, ...]) -> None:
    assert parse_families(text) == families


@pytest.mark.parametrize("text", ["", "dual", "IPv4,", "IPv4,IPv4", "IPv5", "4"])
def test_what_is_no_list_of_families_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--ip-families: .*IPv4, IPv6, or both"):
        parse_families(text)


@pytest.mark.parametrize("families", [(IPV6,), (IPV4, IPV6)])
def test_rules_of_istio_1_0_do_not_carry_ipv6_and_the_layout_that_does_is_named(families: tuple[Family, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"--ip-families: .*istio-1\.0.*--layout istio-1\.30"):
        mesh_pods(LabSettings(families=families))


def test_each_pod_has_one_address_of_each_family() -> None:
    for plan in (*mesh_pods(DUAL), control_pod(DUAL), client_pod(DUAL)):
        assert [":" in address for address in plan.addresses] == [False, True]
        assert plan.address == plan.addresses[0]
    swapped = LabSettings(layout="current", families=(IPV6, IPV4))
    assert mesh_pods(swapped)[0].address == "fd00:10:244::10"


def test_settings_are_read_as_they_were_written() -> None:
    written = DUAL._replace(variant="legacy", interception=(("mode", "TPROXY"),), proxy=("-x", ""), ready_timeout=2.5)
    assert LabSettings.from_json(written.to_json()) == written


@pytest.mark.parametrize("mode", ["REDIRECT", "TPROXY"])
def test_pods_of_today_are_called_as_todays_injector_does(mode: str) -> None:
    settings = LabSettings(layout="current", backend="restore", variant="legacy", interception=(("mode", mode),))
    flags = f"-p 15001 -z 15006 -u 1337 -m {mode} -i '*' -x '' -b '*' -d 15090,15021,15020"
    assert shlex.join(settings.rules) == f"istio-iptables --backend=restore --iptables-variant=legacy {flags}"


def test_pods_of_istio_1_0_are_called_with_bare_flags() -> None:
    assert shlex.join(LabSettings().rules) == "-p 15001 -u 1337 -m REDIRECT -i '*' -x '' -b 9080 -d ''"


@pytest.mark.parametrize(
    ("families", "given", "expected"),
    [
        ((IPV4,), (), []),
        ((IPV6,), (), []),
        ((IPV4, IPV6), (), ["true"]),
        ((IPV4, IPV6), (("dual_stack", "false"),), ["false"]),
    ],
)
def test_dual_stack_is_asked_for_where_a_pod_has_both_families_unless_the_user_knows_better(
    families: tuple[Family, ...], given: tuple[tuple[str, str], ...], expected: list[str]
) -> None:
    rules = LabSettings(layout="current", families=families, interception=given).rules
    assert [word.removeprefix("--dual-stack=") for word in rules if "dual-stack" in word] == expected


def test_the_control_plane_serves_all_addresses() -> None:
    made = world(DUAL)
    assert made.services[1].addresses == ("10.96.0.11", "fd00:10:96::11")
    assert made.pods[1].addresses == ("10.244.0.11", "fd00:10:244::11")
    assert World.from_json(made.to_json(), "file") == made


def test_a_proxy_tells_its_first_address_and_all_of_them() -> None:
    environment = proxy_environment(DUAL, mesh_pods(DUAL)[0])
    assert environment["INSTANCE_IP"] == "10.244.0.10"
    assert environment["ISTIO_META_INSTANCE_IPS"] == "10.244.0.10,fd00:10:244::10"


def test_names_of_services_and_of_other_pods_come_from_the_name_server_alone() -> None:
    productpage = mesh_pods(DUAL)[0]
    hosts = hosts_file(DUAL, productpage)
    assert "reviews" not in hosts
    assert "fd00:10:244::10 productpage-v1\n" in hosts
    assert "::1" not in hosts_file(LabSettings(), mesh_pods(LabSettings())[0])
    assert resolv_conf(DUAL, productpage).splitlines()[:3] == [
        "nameserver 10.244.0.2",
        "nameserver fd00:10:244::2",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
    ]
    services = service_names(DUAL).splitlines()
    assert services[2:] == [
        "10.96.0.11 reviews.default.svc.cluster.local",
        "fd00:10:96::11 reviews.default.svc.cluster.local",
    ]
    assert set(services) < set(all_names(DUAL).splitlines())
    assert "fd00:10:244::11 reviews-v1\n" in all_names(DUAL)


@pytest.mark.parametrize(("given", "pods"), [("true", 2), ("1", 2), ("false", 0), (None, 0)])
def test_a_resolver_runs_as_the_proxy_where_dns_is_captured(given: str | None, pods: int) -> None:
    settings = DUAL._replace(interception=(("redirect_dns", given),) if given else ())
    cluster, *found = [program.argv for program in programs(settings) if program.name == DNS]
    assert cluster[-2:] == ("10.244.0.2", "fd00:10:244::2")
    assert len(found) == pods
    for argv in found:
        assert "--reuid=1337" in argv
        assert argv[-4:] == ("--port", "15053", "127.0.0.1", "::1")
        assert argv[argv.index("--forward-to") + 1] == "10.244.0.2"


def test_a_resolver_listens_where_the_rules_send_requests() -> None:
    settings = DUAL._replace(interception=(("redirect_dns", "true"), ("dns_port", "15153")))
    _, *found = [program.argv for program in programs(settings) if program.name == DNS]
    assert [argv[argv.index("--port") + 1] for argv in found] == ["15153"] * 2
