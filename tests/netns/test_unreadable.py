"""Third-party rules of legacy iptables that a library, or a decoder, fails to read: nothing need be known of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.privileges import give_up

if TYPE_CHECKING:
    from tests.netns.namespaces import Namespace, Pod

PLAN = ("-u", "1337", "-i", "*", "-b", "9080")
LIBIPTC = ("--backend", "libiptc")
BACKENDS = {"libiptc": LIBIPTC, "restore": ("--backend", "restore", "--iptables-variant", "legacy")}
LATIN1 = os.fsdecode("grün".encode("latin-1"))
RULES = {
    "comment in latin-1": ("iptables", "nat", "OUTPUT", "-m", "comment", "--comment", LATIN1, "-j", "ACCEPT"),
    "comment with quotes": (
        "iptables",
        "nat",
        "OUTPUT",
        "-m",
        "comment",
        "--comment",
        "it's \" -j ISTIO_OUTPUT",
        "-j",
        "ACCEPT",
    ),
    "interface in latin-1": ("iptables", "nat", "OUTPUT", "-o", LATIN1, "-j", "ACCEPT"),
    "odd netmask": ("iptables", "nat", "OUTPUT", "-d", "10.0.5.0/255.0.255.0", "-j", "ACCEPT"),
    "odd IPv6 netmask": ("ip6tables", "nat", "OUTPUT", "-d", "fd00::5/ff00::ff", "-j", "ACCEPT"),
    "odd mark": ("iptables", "mangle", "OUTPUT", "-m", "mark", "!", "--mark", "0x1/0x5", "-j", "ACCEPT"),
    "odd connmark": (
        "iptables",
        "mangle",
        "OUTPUT",
        "-j",
        "CONNMARK",
        "--restore-mark",
        "--nfmask",
        "0x5",
        "--ctmask",
        "0x9",
    ),
    "bytes": ("iptables", "nat", "OUTPUT", "-m", "string", "--algo", "bm", "--string", LATIN1, "-j", "ACCEPT"),
}


def legacy(namespace: Namespace, program: str, *arguments: str) -> bytes:
    """Run a program of legacy iptables, whose output may be any bytes."""
    return namespace.call(lambda: subprocess.run([program, *arguments], check=True, capture_output=True, timeout=60).stdout)


def saved(namespace: Namespace) -> list[bytes]:
    lines = b"".join(legacy(namespace, f"{program}-legacy-save") for program in ("iptables", "ip6tables")).splitlines()
    return [line for line in lines if line.startswith(b"-A")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_that_are_not_ours_are_neither_changed_nor_in_the_way(pod: Pod, rule: str, backend: str) -> None:
    program, table, *words = RULES[rule]
    legacy(pod.inside, f"{program}-legacy", "-t", table, "-A", *words)
    before = saved(pod.inside)
    assert len(before) == 1
    done = pod.inside.istio_init(*PLAN, *BACKENDS[backend])
    assert "layout istio-1.0 applied" in done.stderr
    if table == "nat" and program == "iptables":
        assert "a third-party rule takes precedence over ours in nat OUTPUT (ipv4)" in done.stderr
    assert before[0] in saved(pod.inside)
    assert "already in place" in pod.inside.istio_init(*PLAN, *BACKENDS[backend]).stderr
    pod.inside.istio_init("clean", *BACKENDS[backend])
    assert saved(pod.inside) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_whose_name_is_not_utf_8_stays(pod: Pod, backend: str) -> None:
    legacy(pod.inside, "iptables-legacy", "-t", "nat", "-N", LATIN1)
    legacy(pod.inside, "iptables-legacy", "-t", "nat", "-A", LATIN1, "-p", "udp", "-j", "RETURN")
    legacy(pod.inside, "iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", LATIN1)
    before = saved(pod.inside)
    pod.inside.istio_init(*PLAN, *BACKENDS[backend])
    assert "already in place" in pod.inside.istio_init(*PLAN, *BACKENDS[backend]).stderr
    pod.inside.istio_init("clean", *BACKENDS[backend])
    assert saved(pod.inside) == before


@pytest.mark.parametrize("lacking", ["libxt_string.so", "libxt_TCPMSS.so"])
def test_rules_of_extensions_that_are_not_installed_are_replaced_where_they_lead_into_our_chains(
    pod: Pod, tmp_path: Path, lacking: str
) -> None:
    """The image of an init container has other extensions than the one that wrote a rule."""
    words = ("-p", "tcp", "-m", "string", "--string", "abc", "--algo", "bm")
    for line in (
        "-N ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT {} -j RETURN",
        "-A OUTPUT {} -j ACCEPT",
        "-A OUTPUT {} -j ISTIO_OUTPUT",
    ):
        legacy(pod.inside, "iptables-legacy", "-t", "nat", *line.format(" ".join(words)).split())
    mss = ("-A", "POSTROUTING", "-p", "tcp", "--tcp-flags", "SYN", "SYN", "-j", "TCPMSS", "--set-mss", "900")
    legacy(pod.inside, "iptables-legacy", "-t", "mangle", *mss)
    theirs = [line for line in saved(pod.inside) if b"ISTIO_" not in line]
    environment = {"XTABLES_LIBDIR": str(without(lacking, tmp_path))}
    done = in_a_new_process(pod.inside, environment, *PLAN, *LIBIPTC)
    if lacking == "libxt_string.so":
        assert "`(matches that python-iptables cannot read) -j ACCEPT`" in done
    assert b'-A OUTPUT -p tcp -m string --string "abc" --algo bm -j ISTIO_OUTPUT' not in saved(pod.inside)
    assert "already in place" in in_a_new_process(pod.inside, environment, *PLAN, *LIBIPTC)
    in_a_new_process(pod.inside, environment, "clean", *LIBIPTC)
    assert saved(pod.inside) == theirs


def test_closed_streams_do_not_keep_libiptc_from_writing(pod: Pod) -> None:
    command = [sys.executable, "-m", "istio_init", *PLAN, *LIBIPTC]
    pod.inside.run("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command)
    assert "already in place" in pod.inside.istio_init(*PLAN, *LIBIPTC).stderr


def without(lacking: str, directory: Path) -> Path:
    """Give a directory with all installed extensions but one."""
    installed = next(Path("/usr/lib").glob("*/xtables"), None)
    if installed is None or not (installed / lacking).exists():
        give_up(f"the extensions of iptables, {lacking} among them, are not where they are looked for")
    for file in installed.iterdir():
        if file.name != lacking:
            (directory / file.name).symlink_to(file)
    return directory


def in_a_new_process(namespace: Namespace, environment: dict[str, str], *arguments: str) -> str:
    """Run the program, where extensions are not loaded yet, and give its log."""
    return namespace.run(sys.executable, "-m", "istio_init", *arguments, environment=environment).stderr
