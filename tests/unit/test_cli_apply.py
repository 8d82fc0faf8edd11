"""What an apply and a clean log and how they end, shown with a kernel in memory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from istio_init.cli.main import run
from istio_init.core.errors import (
    ChildFailed,
    CommandError,
    Ended,
    InvalidInput,
    IstioInitError,
    LockHeld,
    NotPermitted,
    ToolFault,
    Unsupported,
    ValidationFailed,
)
from istio_init.rules.kernel.engine import Engine
from istio_init.rules.kernel.fake import FakeBackend
from istio_init.rules.model import Family, Table
from istio_init.rules.options import OPTIONS
from tests.privileges import give_up
from tests.unit.program import POD, TPROXY, command

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.rules.kernel.backend import Readings


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    fake = FakeBackend()
    _use(fake, monkeypatch)
    return fake


def _use(fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("istio_init.rules.kernel.engine.open_engine", lambda *_: Engine(fake))
    for option in OPTIONS:
        for variable in option.variables:
            monkeypatch.delenv(variable, raising=False)


def test_an_apply_logs_one_line_with_what_it_did(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*POD]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"istio-init: layout istio-1\.0 applied \(fake; ipv4 plain, ipv6 plain\): "
        r"5 chains and \d+ rules written, IPv6 from outside is closed \(ENABLE_INBOUND_IPV6 opens it\), \d+ ms\n",
        err,
    )
    assert set(backend.kernel[Family.IPV4][Table.NAT].chains) == {
        "ISTIO_REDIRECT",
        "ISTIO_IN_REDIRECT",
        "ISTIO_INBOUND",
        "ISTIO_OUTPUT",
    }


def test_a_second_apply_says_that_all_is_in_place(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    run([*POD])
    written = backend.transactions
    capsys.readouterr()
    assert run([*POD]) == 0
    assert "already in place" in capsys.readouterr().err
    assert backend.transactions == written


def test_no_arguments_are_an_apply_of_the_defaults(backend: FakeBackend) -> None:
    assert run([]) == 0
    assert "ISTIO_OUTPUT" in backend.kernel[Family.IPV4][Table.NAT].chains


def test_clean_removes_what_an_apply_made(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    run([*TPROXY])
    assert backend.surroundings().find(frozenset())
    capsys.readouterr()
    assert run(["clean"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"istio-init: clean \(fake; .*\): [1-9]\d* chains and the policy route removed, \d+ ms\n", err)
    assert backend.surroundings().find(frozenset()) == ()
    assert not any(state.chains for tables in backend.kernel.values() for state in tables.values())
    assert run(["clean"]) == 0
    assert "nothing to remove" in capsys.readouterr().err


def test_clean_tells_of_the_address_of_lo_that_it_removes(backend: FakeBackend, capsys: pytest.CaptureFixture[str]) -> None:
    run(["--layout", "current", "--dual-stack"])
    assert backend.surroundings().addresses() == ("::6/128",)
    capsys.readouterr()
    assert run(["clean"]) == 0
    assert " chains and the address of lo removed, " in capsys.readouterr().err
    assert backend.surroundings().addresses() == ()


@pytest.mark.parametrize("family", Family)
def test_one_family_can_be_applied_alone(backend: FakeBackend, family: Family) -> None:
    assert run(["--family", family.value, *POD]) == 0
    assert [one for one in Family if backend.kernel[one]] == [family]


@pytest.mark.usefixtures("backend")
def test_a_quiet_apply_logs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", *POD]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("backend")
def test_the_log_of_an_apply_is_json_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--log-format", "json", *POD]) == 0
    record = json.loads(capsys.readouterr().err)
    assert record["level"] == "info"
    assert "applied" in record["message"]


def test_a_family_that_does_not_work_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _use(FakeBackend(missing=frozenset({Family.IPV6})), monkeypatch)
    assert run([*POD]) == 0
    warning, info = capsys.readouterr().err.splitlines()
    assert warning.startswith("istio-init: warning: ipv6 rules are left out")
    assert "applied" in info


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("wait", ["inf", "nan", "1e30", "ten"])
def test_a_wait_that_is_no_time_is_refused(wait: str) -> None:
    assert run(["clean", "--lock-wait", wait]) == 2


class FailingBackend(FakeBackend):
    """Fails with one error, whatever is asked of it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def read(self, families: tuple[Family, ...]) -> Readings:
        del families
        raise self._error


# Each class of errors, and the exit code that the documentation promises for it.
ERRORS: dict[type[IstioInitError], tuple[Callable[[], IstioInitError], int]] = {
    IstioInitError: (lambda: IstioInitError("went wrong"), 1),
    InvalidInput: (lambda: InvalidInput("-p", "'0' is not a port", "1..65535"), 2),
    NotPermitted: (lambda: NotPermitted("went wrong"), 3),
    Unsupported: (lambda: Unsupported("went wrong"), 4),
    CommandError: (lambda: CommandError(("iptables-restore", "-w"), 1, "no\n such thing", "load a module"), 4),
    ToolFault: (lambda: ToolFault(("nft", "-f", "-"), -9, "", "run this again"), 4),
    LockHeld: (lambda: LockHeld("went wrong"), 5),
    Ended: (lambda: Ended(15), 143),
    ValidationFailed: (lambda: ValidationFailed("went wrong"), 126),
    ChildFailed: (lambda: ChildFailed("went wrong", 137), 137),
}


@pytest.mark.parametrize("verb", ["apply", "clean"])
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_each_kind_of_error_ends_with_its_exit_code_and_one_line(
    kind: type[IstioInitError],
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, exit_code = ERRORS[kind]
    error = make()
    error.add_note("the previous rules are in place again (rollback)")
    _use(FailingBackend(error), monkeypatch)
    assert run([verb]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"istio-init: error: {' '.join(str(error).split())}; the previous rules are in place again (rollback)\n"


def test_a_failed_command_is_told_with_arguments_status_message_and_remedy() -> None:
    error = CommandError(("iptables-restore", "-w"), 1, "no such thing", "load a module")
    assert str(error) == "`iptables-restore -w` exited with status 1: no such thing; load a module"
    error = CommandError(("iptables-restore",), None, "", "install it")
    assert str(error) == "`iptables-restore` did not run to its end: no message; install it"


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            PermissionError(13, "Permission denied", "/proc/x"),
            1,
            "the system refused: [Errno 13] Permission denied: '/proc/x'",
        ),
    ],
)
def test_an_interruption_and_a_refusal_by_the_system_are_told_in_one_line(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _use(FailingBackend(error), monkeypatch)
    assert run([]) == exit_code
    assert capsys.readouterr().err == f"istio-init: error: {message}\n"


def test_a_machine_without_iptables_is_told_which_program_is_missing() -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        give_up("not installed: unshare")
    enter = [unshare, "--map-root-user", "--net"]
    if subprocess.run([*enter, sys.executable, "-c", ""], check=False, capture_output=True).returncode != 0:
        give_up("this machine does not let a user make network namespaces")
    done = subprocess.run(
        [*enter, *command(*POD, "-u", "0", "-g", "0")],  # the only ids that are mapped there
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": ""},
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert "iptables-nft-restore" in line or "iptables-nft-save" in line
    assert "there is no such program on the PATH" in line
    assert "install" in line
