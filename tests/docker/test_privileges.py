"""With how little the init container works, and what it says where that is too little: in real containers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.docker.engine import ADMIN_ONLY, INIT, LEAST, POD, docker, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NETLINK, NETFILTER = 16, 12  # AF_NETLINK, NETLINK_NETFILTER
TABLE_INFO, MATCH_REVISION = 64, 66  # IPT_SO_GET_INFO, IPT_SO_GET_REVISION_MATCH
EPROTONOSUPPORT, ENOPROTOOPT, ENOENT = 93, 92, 2
USER_IMAGE = "istio-init-user"  # not a tag of INIT, which `docker save` would put in beside the other


def argument(index: int, value: int) -> dict[str, object]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


# What a kernel without these parts answers.
WITHOUT_NFTABLES = {
    "names": ["socket"],
    "action": "SCMP_ACT_ERRNO",
    "errnoRet": EPROTONOSUPPORT,
    "args": [argument(0, NETLINK), argument(2, NETFILTER)],
}
WITHOUT_LEGACY = {
    "names": ["getsockopt"],
    "action": "SCMP_ACT_ERRNO",
    "errnoRet": ENOPROTOOPT,
    "args": [argument(2, TABLE_INFO)],
}
WITHOUT_MATCHES = {
    "names": ["getsockopt"],
    "action": "SCMP_ACT_ERRNO",
    "errnoRet": ENOENT,
    "args": [argument(2, MATCH_REVISION)],
}
WITHOUT_REPLACE = {
    "names": ["setsockopt"],
    "action": "SCMP_ACT_ERRNO",
    "errnoRet": ENOENT,
    "args": [argument(2, TABLE_INFO)],  # IPT_SO_SET_REPLACE has the same number
}


@pytest.fixture
def pod() -> Iterator[str]:
    """Give flags that put a container into the network of another one, as in a pod."""
    made = docker("run", "-d", "--entrypoint=python3", INIT, "-c", "import signal; signal.pause()").stdout.strip()
    yield f"--network=container:{made}"
    docker("rm", "--force", made)


@pytest.fixture(scope="module")
def user_image(root_of_build: str) -> Iterator[str]:
    arguments = ("--build-arg", "USER=1337", "--build-arg", "FILE_CAPS=1")
    docker("build", "-q", "-f", "docker/Dockerfile", "--target", "init", "-t", USER_IMAGE, *arguments, root_of_build)
    yield USER_IMAGE
    docker("image", "rm", USER_IMAGE)


@pytest.fixture(scope="module")
def root_of_build(pytestconfig: pytest.Config) -> str:
    return str(pytestconfig.rootpath)


def kernel(path: Path, *lacks: dict[str, object]) -> tuple[str, ...]:
    """Give the flags for a kernel that answers as one without some of its parts."""
    profile = path / "seccomp.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": list(lacks)}), encoding="ascii")
    return (f"--security-opt=seccomp={profile}",)


def rules(pod: str, program: str) -> str:
    flags = (pod, "--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW", f"--entrypoint={program}")
    return run(INIT, "-t", "nat", flags=flags).stdout


@pytest.mark.parametrize("means", [(), ("-m", "TPROXY"), ("--backend", "nft")], ids=["redirect", "tproxy", "nft"])
def test_two_capabilities_and_a_read_only_root_are_enough(pod: str, means: tuple[str, ...]) -> None:
    done = run(INIT, *POD, *means, flags=(pod, *LEAST))
    assert "applied" in done.stderr
    assert "warning" not in done.stderr
    assert "already in place" in run(INIT, *POD, *means, flags=(pod, *LEAST)).stderr


def test_net_admin_alone_is_enough_where_nf_tables_is_there(pod: str) -> None:
    done = run(INIT, *POD, flags=(pod, *ADMIN_ONLY))
    assert "applied (restore; ipv4 nft, ipv6 nft)" in done.stderr
    assert "ISTIO_OUTPUT" in rules(pod, "iptables-nft-save")


def test_net_admin_alone_on_a_kernel_without_nf_tables_says_what_is_missing(pod: str, tmp_path: Path) -> None:
    failed = run(INIT, *POD, flags=(pod, *ADMIN_ONLY, *kernel(tmp_path, WITHOUT_NFTABLES)), check=False)
    assert failed.returncode == 3
    assert "capability NET_RAW" in failed.stderr
    assert "legacy iptables needs NET_RAW to open its raw socket" in failed.stderr


def test_without_capabilities_it_says_which_one_it_needs(pod: str) -> None:
    failed = run(INIT, *POD, flags=(pod, "--cap-drop=ALL"), check=False)
    assert failed.returncode == 3
    (line,) = failed.stderr.splitlines()
    assert "give the container the capability NET_ADMIN (securityContext.capabilities.add)" in line
    assert "where the kernel has no nf_tables, legacy iptables needs NET_RAW as well" in line


@pytest.mark.parametrize("means", [("--iptables-variant", "legacy"), ("--backend", "libiptc")], ids=["restore", "libiptc"])
def test_a_read_only_lock_path_is_replaced_and_told(pod: str, means: tuple[str, ...]) -> None:
    done = run(INIT, *POD, *means, flags=(pod, *LEAST))
    assert "warning: the lock file /run/xtables.lock cannot be opened (Read-only file system)" in done.stderr
    assert "a private one, /proc/" in done.stderr
    assert "ISTIO_OUTPUT" in rules(pod, "iptables-legacy-save")


def test_a_writable_run_needs_no_other_lock_path(pod: str) -> None:
    done = run(INIT, *POD, "--iptables-variant", "legacy", flags=(pod, *LEAST, "--tmpfs=/run"))
    assert "warning" not in done.stderr


def test_on_a_kernel_without_nf_tables_legacy_is_taken(pod: str, tmp_path: Path) -> None:
    done = run(INIT, *POD, flags=(pod, *LEAST, *kernel(tmp_path, WITHOUT_NFTABLES)))
    assert "applied (restore; ipv4 legacy, ipv6 legacy)" in done.stderr


def test_a_kernel_without_any_table_is_told_with_the_module_to_load(pod: str, tmp_path: Path) -> None:
    lacks = kernel(tmp_path, WITHOUT_NFTABLES, WITHOUT_LEGACY)
    failed = run(INIT, *POD, flags=(pod, *LEAST, *lacks), check=False)
    assert failed.returncode == 4
    assert "the kernel seems to lack nf_tables; load the modules nf_tables, nft_compat" in failed.stderr
    assert "the kernel seems to lack the table nat of legacy iptables for ipv4; load the module iptable_nat" in failed.stderr


def test_a_kernel_without_a_match_is_told_with_the_module_to_load(pod: str, tmp_path: Path) -> None:
    lacks = kernel(tmp_path, WITHOUT_NFTABLES, WITHOUT_MATCHES, WITHOUT_REPLACE)
    failed = run(INIT, *POD, flags=(pod, *LEAST, *lacks), check=False)
    assert failed.returncode == 4
    assert "match owner" in failed.stderr
    assert "(table nat)" in failed.stderr
    assert "xt_owner" in failed.stderr


def test_native_nftables_without_nf_tables_names_the_module(pod: str, tmp_path: Path) -> None:
    failed = run(INIT, *POD, "--backend", "nft", flags=(pod, *LEAST, *kernel(tmp_path, WITHOUT_NFTABLES)), check=False)
    assert failed.returncode == 4
    assert "load the module nf_tables" in failed.stderr


@pytest.mark.parametrize("means", [(), ("--backend", "nft")], ids=["restore", "nft"])
def test_a_user_who_is_not_root_works_with_capabilities_of_the_files(
    pod: str, user_image: str, means: tuple[str, ...]
) -> None:
    flags = (pod, "--cap-drop=ALL", "--read-only", "--cap-add=NET_ADMIN")
    uid = docker("run", "--rm", "--entrypoint=python3", *flags, user_image, "-c", "import os; print(os.getuid())")
    assert uid.stdout == "1337\n"
    assert "applied" in run(user_image, *POD, *means, flags=flags).stderr
    assert "already in place" in run(user_image, *POD, *means, flags=flags).stderr
    if not means:
        assert "ISTIO_OUTPUT" in rules(pod, "iptables-nft-save")


def test_a_user_who_is_not_root_removes_what_can_be_seen_and_is_told_of_the_rest(pod: str, user_image: str) -> None:
    flags = (pod, "--cap-drop=ALL", "--read-only", "--cap-add=NET_ADMIN")
    run(user_image, *POD, flags=flags)
    done = run(user_image, "clean", flags=flags)
    assert "warning: there may be ipv4 rules of ours that were not seen:" in done.stderr
    assert "only root may list legacy tables" in done.stderr
    assert "ISTIO_" not in rules(pod, "iptables-nft-save")
    assert run(user_image, "clean", "--iptables-variant", "legacy", flags=flags, check=False).returncode == 3


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (("--iptables-variant", "legacy"), "only root may list legacy tables: run as root (runAsUser: 0)"),
        (
            ("--backend", "libiptc"),
            "libiptc may not work on legacy tables: run as root (runAsUser: 0), because no other user has",
        ),
        (("-m", "TPROXY"), "; run as root (runAsUser: 0), because no other user has capabilities in a container;"),
    ],
    ids=["legacy", "libiptc", "tproxy"],
)
def test_what_only_root_can_do_is_told_to_another_user(
    pod: str, user_image: str, flags: tuple[str, ...], remedy: str
) -> None:
    container = (pod, "--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW", "--read-only")
    failed = run(user_image, *POD, *flags, flags=container, check=False)
    assert failed.returncode == 3
    assert remedy in failed.stderr
    assert "give the container" not in failed.stderr, "it has all that there is"


def test_a_user_who_is_not_root_is_told_what_the_files_capabilities_need(pod: str, user_image: str) -> None:
    failed = run(user_image, *POD, flags=(pod, *LEAST), check=False)
    assert failed.returncode == 3
    assert "allowPrivilegeEscalation: true" in failed.stderr


def test_a_user_who_is_not_root_is_told_of_the_image_that_works(pod: str) -> None:
    failed = run(INIT, *POD, flags=(pod, *LEAST, "--user=1337"), check=False)
    assert failed.returncode == 3
    assert "; run as root (runAsUser: 0) or use an image that is built with FILE_CAPS=1;" in failed.stderr
    failed = run(INIT, *POD, flags=(pod, "--cap-drop=ALL", "--user=1337"), check=False)
    assert "give the container the capability NET_ADMIN (securityContext.capabilities.add), and run as root" in failed.stderr
