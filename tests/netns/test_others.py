"""One namespace, two backends: rules that one made are replaced or removed by the other."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.netns.changes import PAIRS, RULE_SETS, WAYS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

REDIRECT = ("-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")
TPROXY = (*REDIRECT, "-m", "TPROXY")
FOREIGN = ("-t", "nat", "-A", "OUTPUT", "-p", "udp", "--dport", "9", "-j", "RETURN")


def rules_of_ours(pod: Namespace) -> set[str]:
    """Name the sets of rules that hold anything of ours."""
    saved = {
        "iptables-nft": pod.save("nft") + pod.save("nft", "ipv6"),
        "iptables-legacy": pod.save("legacy") + pod.save("legacy", "ipv6"),
        "nft": pod.run("nft", "list", "tables").stdout,
    }
    return {name for name, text in saved.items() if "ISTIO_" in text or "istio-init" in text}


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_rules_that_another_backend_made_are_replaced(pod: Pod, first: str, second: str) -> None:
    routing = pod.inside.policy_routing()
    pod.inside.istio_init(*TPROXY, *WAYS[first])
    assert rules_of_ours(pod.inside) == {RULE_SETS[first]}
    logged = pod.inside.istio_init(*REDIRECT, *WAYS[second]).stderr
    assert rules_of_ours(pod.inside) == {RULE_SETS[second]}
    assert "another backend" in logged
    assert pod.inside.policy_routing() == routing
    assert "already in place" in pod.inside.istio_init(*REDIRECT, *WAYS[second]).stderr


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_clean_removes_what_another_backend_made(pod: Pod, first: str, second: str) -> None:
    pod.inside.run("iptables-nft", *FOREIGN)
    before = pod.inside.save("nft"), pod.inside.policy_routing()
    pod.inside.istio_init(*TPROXY, *WAYS[first])
    pod.inside.istio_init("clean", *WAYS[second])
    assert rules_of_ours(pod.inside) == set()
    assert (pod.inside.save("nft"), pod.inside.policy_routing()) == before


def test_the_route_that_both_plans_need_stays(pod: Pod) -> None:
    pod.inside.istio_init(*TPROXY, *WAYS["restore-nft"])
    routing = pod.inside.policy_routing()
    pod.inside.istio_init(*TPROXY, *WAYS["nft"])
    assert "1337" in routing or "0x539" in routing
    assert pod.inside.policy_routing() == routing


ISTIO_NATIVE = """\
table inet istio-proxy-nat {
  chain output {
    type nat hook output priority -100
    meta l4proto tcp redirect to :15001
  }
}
table inet istio-proxy-raw {
}
table inet theirs {
  chain output {
    type nat hook output priority -90
  }
}
"""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("command", [REDIRECT, ("clean",)], ids=["apply", "clean"])
def test_native_tables_of_istios_own_tool_are_replaced_and_cleaned(
    pod: Pod, way: tuple[str, ...], command: tuple[str, ...]
) -> None:
    pod.inside.run("nft", "-f", "-", stdin=ISTIO_NATIVE)
    alone = pod.inside.istio_init(*command, *way, "--family", "ipv4").stderr
    assert "leave out --family to replace them" in alone
    assert "istio-proxy-nat" in pod.inside.run("nft", "list", "tables").stdout
    pod.inside.istio_init(*command, *way)
    tables = pod.inside.run("nft", "list", "tables", "inet").stdout
    assert tables == "table inet theirs\n"
    assert "warning" not in pod.inside.istio_init(*command, *way).stderr


def test_two_sets_that_an_older_version_left_become_one(pod: Pod) -> None:
    pod.inside.istio_init(*REDIRECT, *WAYS["restore-legacy"], "--family", "ipv4")
    script = pod.inside.istio_init(*REDIRECT, "--dry-run", "--family", "ipv4").stdout
    pod.inside.run("iptables-nft-restore", "--noflush", stdin=script)
    assert rules_of_ours(pod.inside) == {"iptables-legacy", "iptables-nft"}
    pod.inside.istio_init(*REDIRECT, "--family", "ipv4")
    assert rules_of_ours(pod.inside) == {"iptables-nft"}
    pod.inside.istio_init("clean")
    assert rules_of_ours(pod.inside) == set()


def test_when_the_others_cannot_be_removed_all_is_as_it_was(pod: Pod, tmp_path: Path) -> None:
    pod.inside.istio_init(*TPROXY, *WAYS["restore-legacy"])
    before = [pod.inside.save(variant) for variant in ("nft", "legacy")], pod.inside.policy_routing()
    marker = tmp_path / "tried"
    real = shutil.which("iptables-legacy-restore")
    stand_in = tmp_path / "iptables-legacy-restore"
    # It fails once; what is put back goes through the real program.
    stand_in.write_text(
        f'#!/bin/sh\n[ -e {marker} ] && exec {real} "$@"\n: >{marker}\ncat >/dev/null\necho no >&2\nexit 4\n'
    )
    stand_in.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"}
    failed = pod.inside.istio_init(*REDIRECT, *WAYS["nft"], check=False, environment=path)
    assert failed.returncode == 4, failed.stderr
    assert marker.exists()
    assert "the previous rules are in place again (rollback)" in failed.stderr
    assert rules_of_ours(pod.inside) == {"iptables-legacy"}
    assert ([pod.inside.save(one) for one in ("nft", "legacy")], pod.inside.policy_routing()) == before


@pytest.mark.parametrize(("first", "code"), [("restore-nft", 0), ("restore-legacy", 4)])
def test_where_only_nft_is_installed_rules_of_iptables_are_replaced_or_nothing_is(
    pod: Pod, tmp_path: Path, first: str, code: int
) -> None:
    pod.inside.istio_init(*REDIRECT, *WAYS[first])
    nft = shutil.which("nft")
    assert nft
    (tmp_path / "nft").symlink_to(nft)
    done = pod.inside.istio_init(*REDIRECT, *WAYS["nft"], environment={"PATH": str(tmp_path)}, check=False)
    assert done.returncode == code
    assert rules_of_ours(pod.inside) == {RULE_SETS["nft" if code == 0 else first]}
    if code:
        assert "`iptables-legacy-save` did not run to its end: there is no such program" in done.stderr
        assert "nothing was changed" in done.stderr
