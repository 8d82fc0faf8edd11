"""Third-party native rules in the tables of iptables, such as kube-router, Calico, Tailscale and Kilo write.

`iptables-nft-save` leaves a table with such a rule out, or fails; so what a run finds is compared with nft's own listing.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.netns.foreign import RULES, add_rule, foreign, handles, listed, try_sets, unordered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.netns.namespaces import Pod

REDIRECT = ("-p", "15001", "-u", "1337", "-i", "*", "-b", "9080")
TPROXY = ("-p", "15001", "-u", "1337", "-i", "10.0.0.0/8", "-b", "*", "-m", "TPROXY")
CURRENT = ("--layout", "current", *REDIRECT[2:], "-c", "net1", "-k", "vm0", "-m", "TPROXY", "--dual-stack")
NATIVE = ("--backend", "nft")
SETS, SEED = 4, 20261125


@pytest.mark.parametrize("place", RULES.values(), ids=RULES)
def test_a_plan_is_found_replaced_and_removed_beside_any_rule(pod: Pod, place: tuple[str, str, str, str]) -> None:
    add_rule(pod.inside, *place)
    before, theirs = foreign(pod.inside), handles(pod.inside)
    routing = pod.inside.policy_routing()
    pod.inside.istio_init(*REDIRECT)
    first = unordered(pod.inside)
    assert "already in place" in pod.inside.istio_init(*REDIRECT).stderr
    for plan in (CURRENT, TPROXY, REDIRECT):
        pod.inside.istio_init(*plan)
        again = handles(pod.inside)
        pod.inside.istio_init(*plan)
        assert len(handles(pod.inside)) == len(again)
    assert unordered(pod.inside) == first
    assert foreign(pod.inside) == before
    pod.inside.istio_init(*REDIRECT, *NATIVE)
    assert not any("ISTIO_" in chain and table != "istio-init" for _, table, chain in listed(pod.inside))
    pod.inside.istio_init(*REDIRECT)
    assert {name for name in listed(pod.inside) if "ISTIO_" in name[2]} == {name for name in first if "ISTIO_" in name[2]}
    pod.inside.istio_init("clean")
    assert listed(pod.inside) == before
    assert handles(pod.inside) == theirs
    assert pod.inside.policy_routing() == routing


def test_when_a_part_fails_beside_such_rules_all_is_as_it_was(pod: Pod, tmp_path: Path) -> None:
    for place in (RULES["dnat"], RULES["mark-set"], ("ip6", "nat", "OUTPUT", "ip6 daddr vmap { fd00::9 : accept }")):
        add_rule(pod.inside, *place)
    pod.inside.istio_init(*CURRENT)
    was, routing = unordered(pod.inside), pod.inside.policy_routing()
    real = shutil.which("ip6tables-nft-restore")
    (tmp_path / "ip6tables-nft-restore").write_text(
        f'#!/bin/sh\nscript=$(cat)\ncase $script in *15055*) echo "no such thing" >&2; exit 1;; esac\n'
        f'printf "%s\\n" "$script" | exec {real} "$@"\n'
    )
    (tmp_path / "ip6tables-nft-restore").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    other = (*CURRENT, "-p", "15055", "-k", "vm1")
    failed = pod.inside.istio_init(*other, environment=environment, check=False)
    assert failed.returncode == 4
    assert "the previous rules are in place again (rollback)" in failed.stderr
    assert unordered(pod.inside) == was
    assert pod.inside.policy_routing() == routing


@pytest.mark.parametrize("plan", [REDIRECT, TPROXY, CURRENT], ids=["redirect", "tproxy", "current"])
def test_without_any_program_of_iptables_or_nft_a_clean_still_removes_all(
    pod: Pod, tmp_path: Path, plan: tuple[str, ...]
) -> None:
    add_rule(pod.inside, *RULES["dnat"])
    before, surroundings = listed(pod.inside), pod.inside.surroundings()
    pod.inside.istio_init(*plan)
    done = pod.inside.istio_init("clean", environment={"PATH": str(tmp_path)})
    assert " chains " in done.stderr
    assert (listed(pod.inside), pod.inside.surroundings()) == (before, surroundings)


def test_what_native_removal_took_away_comes_back_as_it_was_when_a_later_step_fails(pod: Pod, tmp_path: Path) -> None:
    """The rules of iptables are removed before a legacy plan, whose removal fails."""
    pod.inside.istio_init(*REDIRECT, "--iptables-variant", "legacy")
    script = pod.inside.istio_init(*TPROXY, "--dry-run", "--family", "ipv4").stdout
    pod.inside.run("iptables-nft-restore", "--noflush", stdin=script)
    was = pod.inside.save("nft"), pod.inside.save("legacy")
    (tmp_path / "iptables-legacy-restore").write_text("#!/bin/sh\ncat >/dev/null\necho no >&2\nexit 1\n")
    (tmp_path / "iptables-legacy-restore").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    failed = pod.inside.istio_init(*REDIRECT, *NATIVE, environment=environment, check=False)
    assert failed.returncode == 4
    assert (pod.inside.save("nft"), pod.inside.save("legacy")) == was


def test_random_sets_of_such_rules_break_no_promise(pod: Pod) -> None:
    trials = list(try_sets(pod.inside, SETS, SEED))
    assert len(trials) == SETS
    assert [trial for trial in trials if trial.broken] == []
