"""When something fails: the state before is restored, the exit code tells the kind of error, and the message the remedy."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.cases import SERVICE, out
from tests.netns.sockets import connect, servers_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.netns.namespaces import Namespace, Pod

Means = tuple[tuple[str, ...], str]

POD = ("-p", "15001", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "9080", "-d", "")
TPROXY = ("-u", "1337", "-m", "TPROXY", "-i", "10.0.0.0/8", "-b", "*")

# A stand-in for a tool that refuses a script in which a word occurs, and passes on all others.
REFUSING = """\
#!/bin/sh
script=$(cat)
case $script in
  *'{word}'*) {before}echo "{name}: line 3 failed: no such thing." >&2; exit 1;;
esac
printf '%s\\n' "$script" | {real} "$@"
"""
# … but first passes on what stands in front of the table nat, as a real one commits table after table.
FIRST_TABLE = "printf '%s\\n' \"$script\" | sed '/^[*]nat/,$d' | {real} \"$@\"; "


def refusing(directory: Path, name: str, word: str, *, after_first_table: bool = False) -> dict[str, str]:
    """Put a stand-in first on the PATH, and give the environment for it."""
    real = shutil.which(name)
    before = FIRST_TABLE.format(real=real) if after_first_table else ""
    tool = directory / name
    tool.write_text(REFUSING.format(word=word, name=name, real=real, before=before))
    tool.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def everything(namespace: Namespace) -> list[str]:
    return [namespace.save("nft"), namespace.save("nft", "ipv6"), namespace.policy_routing()]


@pytest.mark.parametrize("before", [None, POD, TPROXY], ids=["nothing", "redirect", "tproxy"])
@pytest.mark.parametrize(
    ("tool", "word", "after_first_table"),
    [
        ("ip6tables-nft-restore", "ISTIO_INBOUND", False),
        ("iptables-nft-restore", "--to-ports 15055", False),
        ("iptables-nft-restore", "--to-ports 15055", True),
    ],
    ids=["family", "first-table", "second-table"],
)
def test_when_a_part_fails_all_is_as_it_was(
    pod: Pod,
    tmp_path: Path,
    tool: str,
    word: str,
    *,
    after_first_table: bool,
    before: tuple[str, ...] | None,
) -> None:
    run = ("--iptables-variant", "nft")
    if before:
        pod.inside.istio_init(*run, *before, environment={"ENABLE_INBOUND_IPV6": "1"})
    was = everything(pod.inside)
    environment = refusing(tmp_path, tool, word, after_first_table=after_first_table)
    failed = pod.inside.istio_init(*run, *TPROXY, "-p", "15055", environment=environment, check=False)
    assert failed.returncode == 4
    (line,) = failed.stderr.splitlines()
    for part in (
        f"`{tool} --noflush -w 10` exited with status 1",
        "line 3 failed: no such thing",
        "the previous rules are in place again (rollback)",
    ):
        assert part in line
    assert everything(pod.inside) == was


def test_ipv6_that_does_not_work_is_a_warning(pod: Pod, tmp_path: Path) -> None:
    environment = refusing(tmp_path, "ip6tables-nft-restore", "filter")
    done = pod.inside.istio_init("--iptables-variant", "nft", *POD, environment=environment)
    assert "warning: ipv6 rules are left out, because ipv6 does not work here" in done.stderr
    assert "ISTIO_OUTPUT" in pod.inside.save("nft")
    assert pod.inside.save("nft", "ipv6") == ""


def test_ipv6_that_was_asked_for_and_does_not_work_is_an_error(pod: Pod, tmp_path: Path) -> None:
    environment = refusing(tmp_path, "ip6tables-nft-restore", "filter")
    flags = ("--iptables-variant", "nft", "--family", "ipv6")
    assert pod.inside.istio_init(*flags, *POD, environment=environment, check=False).returncode == 4


def test_rules_that_cannot_be_read_are_not_written_over(pod: Pod, tmp_path: Path) -> None:
    pod.inside.istio_init("--iptables-variant", "nft", *POD)
    was = everything(pod.inside)
    (tmp_path / "iptables-nft-save").write_text("#!/bin/sh\necho 'out of memory' >&2\nexit 1\n")
    (tmp_path / "iptables-nft-save").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    failed = pod.inside.istio_init("--iptables-variant", "nft", *POD, environment=environment, check=False)
    assert failed.returncode == 4
    assert "`iptables-nft-save` exited with status 1: out of memory" in failed.stderr
    assert everything(pod.inside) == was


def test_a_failed_run_leaves_a_policy_rule_of_others(pod: Pod, tmp_path: Path) -> None:
    pod.inside.run("ip", "rule", "add", "fwmark", "5", "lookup", "7", "pref", "100")
    was = everything(pod.inside)
    environment = refusing(tmp_path, "iptables-nft-restore", "ISTIO_")
    flags = ("--iptables-variant", "nft", *TPROXY, "-t", "5", "-r", "7")
    assert pod.inside.istio_init(*flags, environment=environment, check=False).returncode == 4
    assert everything(pod.inside) == was


def test_clean_says_when_it_could_not_look(pod: Pod, tmp_path: Path) -> None:
    pod.inside.istio_init("--iptables-variant", "legacy", *POD)
    was = everything(pod.inside)
    failed = pod.inside.istio_init("clean", environment={"PATH": str(tmp_path)}, check=False)
    assert failed.returncode == 4
    assert "there is no such program" in failed.stderr
    assert everything(pod.inside) == was


def test_legacy_tables_that_cannot_be_read_are_no_empty_ones(pod: Pod, tmp_path: Path) -> None:
    pod.inside.istio_init("--iptables-variant", "legacy", *POD)
    for tool in ("iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-save", "ip6tables-nft-restore"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    environment = {"PATH": str(tmp_path)}
    was = everything(pod.inside)
    for command in (("clean",), POD):
        failed = pod.inside.istio_init(*command, environment=environment, check=False)
        assert failed.returncode == 4
        assert "`iptables-legacy-save` did not run to its end: there is no such program" in failed.stderr
        assert "nothing was changed" in failed.stderr
    assert everything(pod.inside) == was


def test_without_ip6tables_ipv6_is_left_out_and_a_clean_still_removes_its_rules(pod: Pod, tmp_path: Path) -> None:
    for tool in ("iptables-nft-save", "iptables-nft-restore"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    environment = {"PATH": str(tmp_path)}
    logged = pod.inside.istio_init(*POD, environment=environment).stderr
    assert "ipv6 rules are left out, because ipv6 does not work here: `ip6tables-nft-restore" in logged
    pod.inside.istio_init(*POD)
    assert "ISTIO_" in pod.inside.save("nft", "ipv6")
    pod.inside.istio_init("clean", environment=environment)
    assert (pod.inside.save("nft"), pod.inside.save("nft", "ipv6")) == ("", "")


each_legacy = pytest.mark.parametrize(
    "run",
    [("--backend", "libiptc"), ("--backend", "restore", "--iptables-variant", "legacy")],
    ids=["libiptc", "restore"],
)


@each_legacy
def test_where_the_lock_file_cannot_be_another_one_is_used_and_named(pod: Pod, run: tuple[str, ...]) -> None:
    command = 'unset XTABLES_LOCKFILE && mount -t tmpfs -o ro none /run && exec "$@"'
    program = (sys.executable, "-m", "istio_init", *run, *POD)
    done = pod.inside.run("unshare", "-m", "sh", "-c", command, "sh", *program)
    assert done.stderr.count("warning: the lock file /run/xtables.lock cannot be opened (Read-only file system)") == 1
    assert "a private one, /proc/" in done.stderr
    assert "ISTIO_OUTPUT" in pod.inside.save("legacy")


@each_legacy
def test_a_lock_file_that_the_user_chose_is_not_replaced(pod: Pod, run: tuple[str, ...]) -> None:
    environment = {"XTABLES_LOCKFILE": "/proc/no-such-directory/lock"}
    failed = pod.inside.istio_init(*run, *POD, environment=environment, check=False)
    assert failed.returncode == 4
    assert "/proc/no-such-directory/lock" in failed.stderr
    assert "XTABLES_LOCKFILE" in failed.stderr
    assert pod.inside.save("legacy") == ""


@contextmanager
def held(path: str) -> Iterator[None]:
    """Hold a lock as another program would."""
    file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600) if not path.startswith("/proc") else os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def test_a_namespace_that_another_run_works_on_is_waited_for_and_then_given_up(pod: Pod) -> None:
    with held(pod.inside.path):
        started = time.monotonic()
        refused = pod.inside.istio_init("--lock-wait", "1", *POD, check=False)
        assert time.monotonic() - started >= 1
        assert pod.outside.istio_init("clean", "--lock-wait", "0").returncode == 0, "the lock of one pod holds another"
    assert refused.returncode == 5
    assert "another program holds the lock of this network namespace" in refused.stderr
    assert pod.inside.save("nft") == ""
    assert pod.inside.istio_init(*POD).returncode == 0


@each_legacy
def test_the_lock_of_iptables_is_respected(pod: Pod, tmp_path: Path, run: tuple[str, ...]) -> None:
    path = str(tmp_path / "xtables.lock")
    environment = {"XTABLES_LOCKFILE": path}
    with held(path):
        refused = pod.inside.istio_init(*run, "--lock-wait", "1", *POD, environment=environment, check=False)
    assert refused.returncode == 5
    assert "another program holds the xtables lock" in refused.stderr
    assert pod.inside.istio_init(*run, *POD, environment=environment).returncode == 0


@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_a_missing_capability_is_named(pod: Pod, means: Means, capability: str) -> None:
    run, variant = means
    without = ("setpriv", "--bounding-set", f"-{capability}", "--inh-caps", f"-{capability}")
    command = (*without, sys.executable, "-m", "istio_init", *run, *POD)
    done = pod.inside.run(*command, check=False)
    if capability == "net_raw" and variant == "nft":
        assert done.returncode == 0, "nf_tables needs no raw socket"
        return
    assert done.returncode == 3
    assert f"capability {capability.upper()}" in done.stderr
    assert pod.inside.save(variant) == ""


def test_an_ordinary_user_is_told_what_is_missing(pod: Pod) -> None:
    command = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    refused = pod.inside.run(*command, sys.executable, "-m", "istio_init", *POD, check=False)
    assert refused.returncode == 3
    assert "NET_ADMIN" in refused.stderr


def test_a_run_that_is_ended_leaves_all_or_nothing(pod: Pod) -> None:
    command = ["nsenter", f"--net={pod.inside.path}", sys.executable, "-m", "istio_init", *POD]
    pod.inside.istio_init(*POD)
    whole = everything(pod.inside)
    seen = set()
    for delay in count(0, 8):
        pod.inside.istio_init("clean")
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        time.sleep(delay / 1000)
        process.terminate()
        process.communicate(timeout=30)
        left = everything(pod.inside)
        assert left in (whole, ["", "", whole[2]])
        seen.add(left == whole)
        if delay >= 200 and seen == {True, False}:  # a slow machine needs longer for a whole run
            break
        assert delay < 5000, "no signal came early enough, or none late enough"


def test_a_family_that_fails_cuts_no_connection(pod: Pod, tmp_path: Path) -> None:
    connection = out(SERVICE, 80, "envoy:15001")
    pod.inside.istio_init("--iptables-variant", "nft", *POD)
    environment = refusing(tmp_path, "iptables-nft-restore", "--to-ports 15055")
    with servers_for(pod, [connection]):
        pod.inside.istio_init("-p", "15055", "-u", "1337", "-i", "*", environment=environment, check=False)
        assert connect(pod, connection).server == "envoy:15001"


def test_a_parent_that_ignores_ended_children_keeps_nothing_from_being_written(pod: Pod) -> None:
    # With an inherited SIG_IGN the kernel forgets how a child ended (wait(2)).
    program = ("/usr/bin/env", "--ignore-signal=CHLD", sys.executable, "-m", "istio_init")
    done = pod.inside.run(*program, *POD)
    assert "rules written" in done.stderr
    assert "ISTIO_OUTPUT" in pod.inside.save("nft")
    refused = pod.inside.run(*program, "--iptables-variant", "nft", *POD, environment={"PATH": "/nowhere"}, check=False)
    assert refused.returncode == 4
