"""How a machine's own network namespace is told from a pod's, by stand-ins for /proc, and what says that it is meant."""

from __future__ import annotations

import os
import pty
from typing import TYPE_CHECKING, NamedTuple

import pytest

from istio_init.cli.main import run
from istio_init.core.errors import InvalidInput
from istio_init.core.option import Kind
from istio_init.rules import environment
from istio_init.rules.commands import APPLY, CLEAN, HOST, ISTIO_IPTABLES, is_host_meant
from istio_init.rules.kernel import host
from istio_init.rules.kernel.engine import Engine
from istio_init.rules.kernel.fake import FakeBackend
from istio_init.rules.model import Family, Table
from tests.unit.program import POD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

INITIAL, OTHER = "pid:[4026531836]", "pid:[4026532201]"
MACHINE, POD_NETWORK = "net:[4026531840]", "net:[4026532300]"


class Seen(NamedTuple):
    """What a process finds in /proc; an empty text is a link that it may not read, or that is not there."""

    pid: str
    target: str
    first: str
    has_settings_of_initial: bool = False


HOSTS = {
    "a shell on a machine": Seen(INITIAL, MACHINE, MACHINE),
    "one that may not look at process 1": Seen(INITIAL, MACHINE, "", has_settings_of_initial=True),
}
PODS = {
    "a container": Seen(OTHER, POD_NETWORK, POD_NETWORK),
    "a container of a pod with hostPID": Seen(INITIAL, POD_NETWORK, MACHINE),
    "the same, which may not look at process 1": Seen(INITIAL, POD_NETWORK, ""),
    "a container in a guest (Kata), in the guest's initial network": Seen(
        OTHER, MACHINE, MACHINE, has_settings_of_initial=True
    ),
    "a container of gVisor, whose /proc has no such links": Seen("", "", "", has_settings_of_initial=True),
    "a container of gVisor, with numbers of its own": Seen("pid:[1]", "net:[2]", "net:[2]", has_settings_of_initial=True),
    "a node agent that entered a pod's network": Seen(INITIAL, POD_NETWORK, MACHINE),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Seen], None]:
    def put(seen: Seen) -> None:
        for path, text in (("self/ns/pid", seen.pid), ("thread-self/ns/net", seen.target), ("1/ns/net", seen.first)):
            link = tmp_path / path
            link.parent.mkdir(parents=True, exist_ok=True)
            if text:
                link.symlink_to(text)
        if seen.has_settings_of_initial:
            setting = tmp_path / host.OF_INITIAL_NETWORK
            setting.parent.mkdir(parents=True)
            setting.touch()
        monkeypatch.setattr(host, "PROC", str(tmp_path))

    return put


@pytest.fixture(autouse=True)
def _no_files_of_a_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISTIO_INIT_HOST", raising=False)
    files = tuple((name, str(tmp_path / "none" / name)) for name, _ in environment.ENVIRONMENT_FILES)
    monkeypatch.setattr(environment, "ENVIRONMENT_FILES", files)
    for name, _ in files:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """Rules in memory, behind an engine that looks where it is."""
    backend = FakeBackend()
    monkeypatch.setattr(host, "_listed", set)
    monkeypatch.setattr("istio_init.rules.kernel.engine.open_engine", lambda *values: Engine(backend, host=values[-1]))
    return backend


def is_written(backend: FakeBackend) -> bool:
    return Table.NAT in backend.kernel[Family.IPV4]


@pytest.mark.parametrize("seen", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("words", [(), POD, ("clean",), ("istio-iptables", "-b", "*"), ("istio-iptables", "--cleanup-only")])
def test_nothing_is_written_into_a_machines_own_namespace(
    words: tuple[str, ...],
    seen: Seen,
    place: Callable[[Seen], None],
    fake: FakeBackend,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place(seen)
    assert run(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("--host: this network namespace is the machine's own", "ISTIO_INIT_HOST=true", "unshare -n"):
        assert part in line
    assert not is_written(fake)


@pytest.mark.parametrize("seen", PODS.values(), ids=PODS)
def test_a_pod_never_notices(seen: Seen, place: Callable[[Seen], None], fake: FakeBackend) -> None:
    place(seen)
    assert run(POD) == 0
    assert is_written(fake)
    assert run(["clean"]) == 0


@pytest.mark.parametrize("words", [["--help"], ["-n", *POD], ["istio-iptables", "-n", "-b", "*"]])
def test_what_writes_nothing_is_not_refused(words: list[str], place: Callable[[Seen], None], fake: FakeBackend) -> None:
    place(HOSTS["a shell on a machine"])
    assert run(words) == 0
    assert not is_written(fake)


@pytest.mark.parametrize("words", [["--host", *POD], ["apply", "--host=true"], ["istio-iptables", "--host", "-b", "*"]])
def test_the_flag_says_that_a_host_is_meant(words: list[str], place: Callable[[Seen], None], fake: FakeBackend) -> None:
    place(HOSTS["a shell on a machine"])
    assert run(words) == 0
    assert is_written(fake)


def test_the_variable_says_so_and_the_flag_overrides_it(
    place: Callable[[Seen], None], fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(HOSTS["a shell on a machine"])
    monkeypatch.setenv("ISTIO_INIT_HOST", "true")
    assert run(["--host=false"]) == 2
    assert not is_written(fake)
    assert run([]) == 0
    assert is_written(fake)
    assert run(["clean"]) == 0


@pytest.mark.parametrize("name", ["ISTIO_CLUSTER_CONFIG", "ISTIO_SIDECAR_CONFIG"])
@pytest.mark.parametrize("is_named", [True, False], ids=["named", "default"])
def test_a_vm_of_istio_1_0_starts_without_flags(
    name: str,
    *,
    is_named: bool,
    place: Callable[[Seen], None],
    fake: FakeBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place(HOSTS["a shell on a machine"])
    file = tmp_path / "vm.env"
    file.write_text("ISTIO_SERVICE_CIDR=10.0.0.0/8\n", encoding="ascii")
    if is_named:
        monkeypatch.setenv(name, str(file))
    else:
        monkeypatch.setattr(environment, "ENVIRONMENT_FILES", ((name, str(file)),))
    assert run([]) == 0
    assert is_written(fake)
    assert run(["clean"]) == 0


def test_a_value_that_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\$ISTIO_INIT_HOST: 'maybe' is neither true nor false"):
        is_host_meant({}, {"ISTIO_INIT_HOST": "maybe"})
    assert not is_host_meant({}, {"ISTIO_INIT_HOST": ""})


def test_every_command_that_writes_has_the_flag() -> None:
    assert all(HOST in options for options in (APPLY, CLEAN, ISTIO_IPTABLES))
    assert HOST.kind is Kind.SWITCH


# A node, by the chains that a backend notes


@pytest.mark.parametrize("chain", sorted(host.NODE_CHAINS))
@pytest.mark.parametrize("words", [POD, ("clean",)], ids=["apply", "clean"])
def test_chains_of_legacy_tables_show_a_node(
    chain: str,
    words: tuple[str, ...],
    place: Callable[[Seen], None],
    fake: FakeBackend,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place(PODS["a container"])
    fake.node_chains = host.node_chains_in(f"*nat\n:PREROUTING ACCEPT [0:0]\n:{chain} - [0:0]\nCOMMIT\n")
    assert run(words) == 2
    assert f"the chain {chain} shows that this network namespace is a Kubernetes node's" in capsys.readouterr().err
    assert not is_written(fake)
    assert run([*words, "--host"]) == 0


def test_names_that_only_look_like_those_of_a_node_show_none() -> None:
    assert host.node_chains_in("*nat\n:KUBE-SERVICES-X - [0:0]\n:MY-KUBE-SERVICES - [0:0]\nCOMMIT\n") == set()
    assert host.node_chains_in('*nat\n-A OUTPUT -m comment --comment ":KUBE-SERVICES " -j RETURN\nCOMMIT\n') == set()


# The bare name at a terminal


@pytest.fixture
def terminal() -> Iterator[None]:
    """Make standard input a terminal."""
    controller, end = pty.openpty()
    kept = os.dup(0)
    os.dup2(end, 0)
    yield
    os.dup2(kept, 0)
    for file in (kept, end, controller):
        os.close(file)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("seen", HOSTS.values(), ids=HOSTS)
def test_the_bare_name_at_a_machines_terminal_shows_help(
    seen: Seen, place: Callable[[Seen], None], fake: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    place(seen)
    assert run([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: istio-init" in err
    assert "Exit codes:" in err
    assert not is_written(fake)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("seen", PODS.values(), ids=PODS)
def test_a_pod_with_a_terminal_is_an_apply(seen: Seen, place: Callable[[Seen], None], fake: FakeBackend) -> None:
    place(seen)
    assert run([]) == 0
    assert is_written(fake)


@pytest.mark.usefixtures("terminal")
def test_at_a_terminal_a_host_that_is_meant_is_an_apply(
    place: Callable[[Seen], None], fake: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(HOSTS["a shell on a machine"])
    monkeypatch.setenv("ISTIO_INIT_HOST", "true")
    assert run([]) == 0
    assert is_written(fake)
