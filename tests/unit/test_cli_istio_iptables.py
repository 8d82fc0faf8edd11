"""The command with today's names: its flags and variables, and what those that control a run mean here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from istio_init.cli.istio_iptables import COMMAND
from istio_init.cli.main import run
from istio_init.core.errors import ValidationFailed
from istio_init.rules import environment
from istio_init.rules.environment import collect
from istio_init.rules.kernel.engine import Engine
from istio_init.rules.kernel.fake import FakeBackend
from istio_init.rules.layout import CURRENT, ISTIO_1_0, LAYOUTS
from istio_init.rules.model import Family, Table, Variant
from istio_init.rules.options import OPTIONS
from istio_init.rules.run_flags import LEVELS, NO_EFFECT, PROBE_PORT, RUN_FLAGS
from istio_init.rules.settings import HostFacts
from istio_init.rules.validation.attempts import Verdict
from tests.unit.program import call, printed, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.core.option import Option

ALL = ("-u", "1337", "-i", "*", "-b", "*")
# What today's injection template gives to a pod's init container.
INJECTED = (
    *("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"),
    *("-d", "15090,15021,15020", "-q", "5432", "-o", "3306", "-k", "", "-c", "net1", "--log_output_level=default:info"),
)
ONLY_CURRENT = [option for option in OPTIONS if not LAYOUTS[ISTIO_1_0].has(option)]
OF_RUN_FLAGS = {option.name: option for option in RUN_FLAGS}


class Opened:
    """Stands where backends are made: keeps what was asked for, and gives a kernel in memory."""

    def __init__(self) -> None:
        self.backend = FakeBackend()
        self.asked: tuple[str, Variant | None] | None = None

    def __call__(self, name: str, variant: Variant | None, *_: object) -> Engine:
        self.asked = (name, variant)
        return Engine(self.backend)

    @property
    def chains(self) -> set[str]:
        return {name for tables in self.backend.kernel.values() for state in tables.values() for name in state.chains}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    made = Opened()
    monkeypatch.setattr("istio_init.rules.kernel.engine.open_engine", made)
    monkeypatch.setattr(environment, "read_host_facts", lambda: HostFacts(("10.96.0.10",)))
    for option in (*OPTIONS, *RUN_FLAGS):
        for variable in option.variables:
            monkeypatch.delenv(variable, raising=False)
    return made


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, which must refuse, and give its one line."""

    def refuse(*arguments: str) -> str:
        capsys.readouterr()
        assert run(["istio-iptables", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("istio-init: error: ")
        return line

    return refuse


# Settings


def dry(*arguments: str, environment: dict[str, str] | None = None) -> str:
    done = call(*arguments, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_is_an_apply_of_layout_current() -> None:
    words = (*ALL, "--dual-stack", "--drop-invalid")
    text = dry("istio-iptables", "--dry-run", *words)
    assert "ISTIO_DROP" in text
    assert text == dry("apply", "--layout", "current", "--dry-run", *words)
    assert text != printed(*ALL)


def test_the_words_of_an_injected_pod_are_taken() -> None:
    text = dry("istio-iptables", "-n", *INJECTED)
    assert "--dport 5432 -j ISTIO_REDIRECT" in text
    assert "-i net1" in text


def test_each_short_flag_takes_its_value_behind_an_equals_sign() -> None:
    for flag, value in (("-c", "eth1"), ("-p", "15009"), ("-q", "81"), ("-x", ""), ("-b", "80,81")):
        assert dry("istio-iptables", "-n", f"{flag}={value}") == dry("istio-iptables", "-n", flag, value)


def test_a_link_of_its_name_is_the_command(tmp_path: Path) -> None:
    link = tmp_path / "istio-iptables"
    link.symlink_to(Path(sys.executable).parent / "istio-init")
    done = subprocess.run([link, "-n", *ALL], check=True, capture_output=True, text=True)
    assert done.stdout == dry("istio-iptables", "-n", *ALL)


def test_q_is_a_list_of_ports_here_and_quiet_in_apply() -> None:
    assert "--dport 81 -j ISTIO_REDIRECT" in dry("istio-iptables", "-n", "-q", "81", "--quiet")
    assert "--dport 81 -j ISTIO_REDIRECT" in dry("apply", "-n", "-q", "--layout", "current", "--istio-outbound-ports", "81")


@pytest.mark.parametrize("words", [("--redirect-dns", "--capture-all-dns"), ("--redirect-dns=true", "--capture-all-dns=T")])
def test_a_switch_is_on_alone_and_with_a_true_value(words: tuple[str, ...]) -> None:
    assert "--dport 53 -j REDIRECT --to-ports 15053" in dry("istio-iptables", "-n", *words)


def test_a_switch_is_off_with_a_false_value_whatever_a_variable_says() -> None:
    text = dry("istio-iptables", "-n", "--drop-invalid=false", environment={"DROP_INVALID": "true"})
    assert text == dry("istio-iptables", "-n")


@pytest.mark.parametrize("command", [("istio-iptables",), ("apply", "--layout", "current")])
def test_a_switch_takes_no_value_without_an_equals_sign(command: tuple[str, ...]) -> None:
    assert "unexpected extra argument (false)" in refused(call(*command, "-n", "--redirect-dns", "false"))


def test_a_value_that_was_forgotten_before_a_switch_is_not_the_switch() -> None:
    assert "-b" in refused(call("istio-iptables", "-n", "-b", "--redirect-dns"))


@pytest.mark.parametrize("option", ONLY_CURRENT, ids=lambda option: option.name)
def test_a_flag_that_the_old_layout_cannot_express_is_refused_with_the_layout_that_can(option: Option) -> None:
    for flag in (flag for flag in option.flags if flag.startswith("--")):
        line = refused(call("apply", "-n", f"{flag}=1"))
        assert flag in line
        assert "layout istio-1.0 does not support it (allowed: layout istio-1.30" in line


def test_the_layout_can_be_chosen_by_hand(tmp_path: Path) -> None:
    words = ("-u", "1337", "-i", "*", "-b", "9080")
    file = tmp_path / "sidecar.env"
    file.write_text("ENVOY_PORT=15055\n", encoding="utf-8")
    environ = {"ISTIO_SIDECAR_CONFIG": str(file)}
    old = dry("istio-iptables", "-n", "--layout", "istio-1.0", *words, environment=environ)
    assert old == dry("apply", "-n", *words, environment=environ)
    assert "--to-ports 15055" in old
    assert dry("istio-iptables", "-n", "--layout", "current", *words) == dry("istio-iptables", "-n", *words) != old


@pytest.mark.parametrize("option", ONLY_CURRENT, ids=lambda option: option.name)
def test_a_flag_that_the_chosen_layout_cannot_express_is_refused(option: Option) -> None:
    for flag in option.flags:
        value = ("=1",) if flag.startswith("--") else ("", "1")
        words = (flag + value[0], *value[1:])
        line = refused(call("istio-iptables", "-n", "--layout", "istio-1.0", *words))
        assert "layout istio-1.0 does not support it (allowed: layout istio-1.30 (--layout))" in line


@pytest.mark.parametrize("layout", [(), ("--layout", "current")])
def test_ports_behind_the_q_of_apply_are_refused_with_what_to_write(layout: tuple[str, ...]) -> None:
    line = refused(call("apply", *layout, "-q", "80,443"))
    assert "-q: it is --quiet in `apply`" in line
    assert "--layout current --istio-outbound-ports 80,443, or `istio-init istio-iptables -q 80,443`" in line


@pytest.mark.parametrize("option", RUN_FLAGS, ids=lambda option: option.name)
def test_a_flag_that_apply_lacks_is_refused_with_the_command_that_has_it(option: Option) -> None:
    (flag,) = (flag for flag in option.flags if flag.startswith("--"))
    done = call("apply", f"{flag}=1", "-n")
    if option.name == "dry_run":
        assert "Option '--dry-run' does not take a value" in done.stderr
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{flag}: `apply` has no such flag (allowed: `istio-init istio-iptables`" in done.stderr


def test_a_flag_that_nobody_has_is_refused() -> None:
    assert "No such option" in refused(call("apply", "--no-such-flag"))


@pytest.mark.parametrize("option", ONLY_CURRENT, ids=lambda option: option.name)
def test_a_variable_that_only_the_other_layout_has_is_ignored(option: Option) -> None:
    for variable in option.variables:
        assert collect({}, {variable: "no such value"}) == {}
        assert collect({}, {variable: "no such value"}, CURRENT)[option.name].text == "no such value"


def test_what_only_the_old_layout_reads_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.env"
    file.write_text("ENVOY_PORT=1\n", encoding="utf-8")
    environ = {"ISTIO_SIDECAR_CONFIG": str(file), "ENABLE_INBOUND_IPV6": "1"}
    assert collect({}, environ, CURRENT) == {}
    assert {"envoy_port", "ENABLE_INBOUND_IPV6"} == set(collect({}, environ))


def test_the_proxys_user_can_be_named_by_a_variable_in_both_layouts() -> None:
    assert "--uid-owner 0" in dry("istio-iptables", "-n", environment={"ENVOY_USER": "root"})


@pytest.mark.parametrize("variable", [name for option in OPTIONS if option.is_switch for name in option.variables])
def test_a_malformed_variable_is_refused_by_name(variable: str) -> None:
    assert f"${variable}: 'maybe' is neither true nor false" in refused(
        call("istio-iptables", "-n", environment={variable: "maybe"})
    )


def test_an_unknown_flag_is_refused() -> None:
    assert "--no-such-flag" in refused(call("istio-iptables", "-n", "--no-such-flag"))


# Flags that control a run


def test_help_lists_each_flag_and_variable() -> None:
    text = " ".join(dry("istio-iptables", "--help").split())
    for option in (*OPTIONS, *RUN_FLAGS):
        assert not option.flags or f"{', '.join(option.flags)} {option.metavar}" in text
        for variable in option.variables:
            assert variable in text


SWITCHES = frozenset(option.name for option in RUN_FLAGS if option.is_switch)
BAD = {"probe_port": "0", "probe_timeout": "5", "force_iptables_binary": "iptables", "log_output_level": "loud"}


@pytest.mark.parametrize("name", [*BAD, *sorted(SWITCHES - {"log_as_json"})])
def test_bad_values_are_refused_by_the_flag_or_the_variable(
    name: str, opened: Opened, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option, bad = OF_RUN_FLAGS[name], BAD.get(name, "maybe")
    assert f"{'/'.join(option.flags)}: {bad!r} " in refusal(f"{option.flags[-1]}={bad}")
    for variable in option.variables:
        monkeypatch.setenv(variable, bad)
        assert f"${variable}: {bad!r} " in refusal()
    assert opened.chains == set()


def test_a_dry_run_by_flag_and_by_variable_writes_nothing(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["-n"], ["--dry-run"], ["-n=true"]):
        assert run(["istio-iptables", *ALL, *words]) == 0
        assert "*nat" in capsys.readouterr().out
    monkeypatch.setenv("DRY_RUN", "true")
    assert run(["istio-iptables", *ALL]) == 0
    assert opened.asked is None
    assert run(["istio-iptables", *ALL, "-n=false"]) == 0
    assert "ISTIO_OUTPUT" in opened.chains


def test_rules_are_written_once(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["istio-iptables", *ALL, "--reconcile"]) == 0
    assert "layout istio-1.30 applied" in capsys.readouterr().err
    assert set(opened.backend.kernel[Family.IPV4]) == {Table.NAT}
    written = opened.backend.transactions
    assert run(["istio-iptables", *ALL]) == 0
    assert "already in place" in capsys.readouterr().err
    assert opened.backend.transactions == written


def test_cleanup_only_removes_what_is_ours(opened: Opened) -> None:
    assert run(["istio-iptables", *ALL]) == 0
    assert opened.chains
    assert run(["istio-iptables", *ALL, "--cleanup-only"]) == 0
    assert opened.chains == set()


def test_a_dry_run_of_a_cleanup_needs_no_privileges_and_says_what_it_cannot_see(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opened: Opened
) -> None:
    monkeypatch.setattr(environment, "has_capability", lambda _: False)
    assert run(["istio-iptables", *ALL, "--cleanup-only", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert (out, opened.asked) == ("", None)
    assert "without the capability NET_ADMIN, what is there cannot be seen; a clean removes" in err


@pytest.mark.usefixtures("opened")
def test_a_dry_run_of_a_cleanup_has_one_form(refusal: Callable[..., str]) -> None:
    line = refusal("--cleanup-only", "--dry-run", "--format", "json")
    assert "--format: it is for rules to write, not for --cleanup-only (allowed: one of the two)" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-p", "99999"), "-p/--envoy-port: '99999' is not a port"),
        (("-i", "10.0.0.0/33"), "-i/--istio-service-cidr: '10.0.0.0/33' has no valid prefix length"),
        (("-u", "nobody-of-this-name"), "-u/--proxy-uid: there is no user"),
    ],
)
def test_a_cleanup_with_a_bad_value_removes_nothing(
    words: tuple[str, ...], message: str, opened: Opened, refusal: Callable[..., str]
) -> None:
    assert run(["istio-iptables", *ALL]) == 0
    before = opened.chains
    assert message in refusal("--cleanup-only", *words)
    assert opened.chains == before != set()


def test_skipped_rules_are_not_written(opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["istio-iptables", *ALL, "--skip-rule-apply"]) == 0
    assert opened.asked is None
    assert "no rule is written" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*NO_EFFECT, "reconcile"])
def test_what_has_no_meaning_here_says_so(name: str, opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    flag = OF_RUN_FLAGS[name].flags[-1]
    value = "false" if name == "reconcile" else "true" if name in SWITCHES else "5"
    assert run(["istio-iptables", *ALL, f"{flag}={value}"]) == 0
    assert f"istio-init: warning: {flag} has no effect: " in capsys.readouterr().err
    assert "ISTIO_OUTPUT" in opened.chains
    if name in SWITCHES:
        assert run(["istio-iptables", *ALL, f"{flag}={'true' if value == 'false' else 'false'}"]) == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("probe_port", "99"), ("probe_timeout", "3s")])
@pytest.mark.usefixtures("opened")
def test_flags_of_a_validation_without_one_have_no_effect_and_say_so(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (flag,), (variable,) = OF_RUN_FLAGS[name].flags, OF_RUN_FLAGS[name].variables
    assert run(["istio-iptables", *ALL, f"{flag}={value}", "--run-validation=false"]) == 0
    assert f"warning: {flag} has no effect: it applies only with --run-validation" in capsys.readouterr().err
    monkeypatch.setenv(variable, value)
    assert run(["istio-iptables", *ALL]) == 0
    assert f"warning: ${variable} has no effect" in capsys.readouterr().err
    validation_gives(monkeypatch, GOOD)
    assert run(["istio-iptables", *ALL, "--run-validation"]) == 0
    assert "has no effect" not in capsys.readouterr().err


def test_every_flag_that_controls_a_run_has_a_test_of_its_meaning() -> None:
    tested = {"dry_run", "reconcile", "cleanup_only", "skip_rule_apply", "native_nftables", "force_iptables_binary"}
    tested |= {"run_validation", "probe_port", "probe_timeout", "network_namespace", "log_output_level", "log_as_json"}
    assert {option.name for option in RUN_FLAGS} == tested | set(NO_EFFECT)


def test_native_nftables_is_the_backend_nft(opened: Opened, refusal: Callable[..., str]) -> None:
    for words in (["--native-nftables"], ["--native-nftables=false"]):
        assert run(["istio-iptables", *ALL, *words]) == 0
        assert opened.asked == ("auto" if "=" in words[0] else "nft", None)
    assert "--native-nftables: it contradicts --backend restore" in refusal("--native-nftables", "--backend", "restore")


def test_a_dry_run_with_native_nftables_prints_rules_of_nftables() -> None:
    text = dry("istio-iptables", "-n", *ALL, "--native-nftables")
    assert text == dry("istio-iptables", "-n", *ALL, "--format", "nft")
    assert text != dry("istio-iptables", "-n", *ALL)


@pytest.mark.parametrize("binary", ["legacy", "nft"])
def test_a_forced_binary_is_a_variant(
    binary: str, opened: Opened, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_IPTABLES_BINARY", binary)
    assert run(["istio-iptables", *ALL, "--iptables-variant", binary]) == 0
    assert opened.asked == ("auto", Variant(binary))
    other = "nft" if binary == "legacy" else "legacy"
    assert f"$FORCE_IPTABLES_BINARY: {binary!r} contradicts --iptables-variant" in refusal("--iptables-variant", other)
    monkeypatch.delenv("FORCE_IPTABLES_BINARY")
    named = ("--iptables-variant", other, "--force-iptables-binary", binary)
    assert "error: --force-iptables-binary: " in refusal(*named)


@pytest.mark.parametrize("other", ["--skip-rule-apply", "--run-validation"])
@pytest.mark.usefixtures("opened")
def test_a_cleanup_with_anything_else_is_refused(other: str, refusal: Callable[..., str]) -> None:
    assert f"--cleanup-only: it removes rules, which contradicts {other}" in refusal("--cleanup-only", other)


@pytest.mark.parametrize("other", ["SKIP_RULE_APPLY", "RUN_VALIDATION"])
@pytest.mark.usefixtures("opened")
def test_variables_that_contradict_each_other_are_told_by_their_names(
    other: str, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(other, "true")
    assert f"--cleanup-only: it removes rules, which contradicts ${other} " in refusal("--cleanup-only")
    monkeypatch.setenv("CLEANUP_ONLY", "true")
    assert f"$CLEANUP_ONLY: it removes rules, which contradicts ${other} " in refusal()


@pytest.mark.usefixtures("opened")
def test_variables_of_a_validation_and_of_a_backend_are_told_by_their_names(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATIVE_NFTABLES", "true")
    assert "error: $NATIVE_NFTABLES: it contradicts --backend restore" in refusal("--backend", "restore")
    monkeypatch.setenv("RUN_VALIDATION", "true")
    monkeypatch.setenv("DRY_RUN", "true")
    assert "error: $RUN_VALIDATION: it needs rules in the kernel, but $DRY_RUN writes none" in refusal()


@pytest.mark.usefixtures("opened")
def test_a_port_at_odds_with_a_variable_is_told_with_the_variable(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTIO_META_DNS_CAPTURE", "true")
    assert "-p/--envoy-port: 15053 is the port of the proxy's resolver, which $ISTIO_META_DNS_CAPTURE uses" in refusal(
        "-p", "15053"
    )


@pytest.mark.usefixtures("opened")
def test_a_validation_of_a_dry_run_is_refused(refusal: Callable[..., str]) -> None:
    assert "--run-validation: it needs rules in the kernel" in refusal("--dry-run", "--run-validation")


@pytest.mark.usefixtures("opened")
def test_a_form_of_output_without_output_is_refused(refusal: Callable[..., str]) -> None:
    assert "--format: it says what --dry-run prints" in refusal("--format", "table")
    assert dry("istio-iptables", "-n", "--format", "table").startswith("Layout current")


# The log


@pytest.mark.parametrize(
    ("text", "infos"),
    [
        ("default:info", True),
        ("debug", True),
        ("", True),
        ("ads:none", True),
        ("default:warn", False),
        ("all:error,default:debug", False),
        ("fatal", False),
        (" none ", False),
    ],
)
@pytest.mark.usefixtures("opened")
def test_levels_in_istios_words_say_what_is_logged(text: str, infos: bool, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: FBT001 - a parameter of the test
    assert run(["istio-iptables", *ALL, f"--log_output_level={text}"]) == 0
    assert ("applied" in capsys.readouterr().err) is infos


@pytest.mark.parametrize("text", ["loud", "all:bad", "default:info:x", ":info", "default:", "info;debug"])
@pytest.mark.usefixtures("opened")
def test_levels_that_are_none_are_refused(text: str, refusal: Callable[..., str]) -> None:
    assert "is not a level (allowed: LEVEL or SCOPE:LEVEL" in refusal(f"--log_output_level={text}")


def test_every_level_of_istio_is_known() -> None:
    assert set(LEVELS) == {"debug", "info", "warn", "error", "fatal", "none"}


@pytest.mark.usefixtures("opened")
def test_the_log_is_json_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for words, exit_code in (([], 0), (["-p", "0"], 2), (["--log_as_json=maybe"], 2), (["--no-such-flag"], 2)):
        assert run(["istio-iptables", "--log_as_json", *ALL, *words]) == exit_code
        assert json.loads(capsys.readouterr().err)["level"] == ("error" if exit_code else "info")


# Network namespaces and validation; real ones are in tests/netns


def test_a_path_that_is_no_network_namespace_is_refused(
    opened: Opened, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    for path in (file, pipe, tmp_path, "/dev/null", "/proc/self/ns/mnt"):
        assert f"--network-namespace: '{path}' is not a network namespace" in refusal("--network-namespace", str(path))
    assert "No such file" in refusal("--network-namespace", str(tmp_path / "none"))
    monkeypatch.setenv("NETWORK_NAMESPACE", str(file))
    assert f"$NETWORK_NAMESPACE: '{file}' is not a network namespace" in refusal()
    monkeypatch.setenv("NETWORK_NAMESPACE", str(tmp_path / "none"))
    assert "$NETWORK_NAMESPACE: cannot open " in refusal()
    assert opened.asked is None


def validation_gives(monkeypatch: pytest.MonkeyPatch, *verdicts: Verdict) -> list[tuple[object, ...]]:
    called: list[tuple[object, ...]] = []

    def validate(*arguments: object) -> tuple[Verdict, ...]:
        called.append(arguments)
        return verdicts

    monkeypatch.setattr("istio_init.rules.validation.validate", validate)
    return called


GOOD, BAD_ONE, UNKNOWN = Verdict(ok=True, text="good"), Verdict(ok=False, text="bad"), Verdict(ok=None, text="unknown")


def test_a_validation_logs_a_line_for_each_path(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = validation_gives(monkeypatch, GOOD, UNKNOWN)
    assert run(["istio-iptables", *ALL, "--run-validation"]) == 0
    _, good, unknown, end = capsys.readouterr().err.splitlines()
    assert (good, unknown) == ("istio-init: ✓ good", "istio-init: warning: unknown")
    assert end.startswith("istio-init: validation passed: 1 of 2 paths checked, ")
    assert opened.chains
    ((_, plan, *rest),) = called
    assert plan.layout == CURRENT  # type: ignore[attr-defined] # the fake takes anything
    assert rest == [PROBE_PORT, 5.0, 10]


@pytest.mark.usefixtures("opened")
def test_flags_control_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    called = validation_gives(monkeypatch, GOOD)
    words = ["--iptables-probe-port", "99", "--probe-timeout=1m0.5s", "--lock-wait", "3", "--family", "ipv4"]
    assert run(["istio-iptables", *ALL, "--dual-stack", "--run-validation", *words]) == 0
    ((_, plan, *rest),) = called
    assert rest == [99, 60.5, 3]
    assert plan.families() == (Family.IPV4,)  # type: ignore[attr-defined] # the fake takes anything


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ((GOOD, BAD_ONE, BAD_ONE, UNKNOWN), "2 of 3 paths are wrong: bad, and 1 more; rules are missing"),
        ((UNKNOWN,), "no path could be checked"),
    ],
)
@pytest.mark.usefixtures("opened")
def test_a_validation_that_fails_ends_with_its_exit_code_a_reason_and_a_remedy(
    verdicts: tuple[Verdict, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    validation_gives(monkeypatch, *verdicts)
    assert run(["istio-iptables", *ALL, "--run-validation"]) == ValidationFailed.exit_code == 126
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("istio-init: error: ✗ bad") == verdicts.count(BAD_ONE)
    assert f"istio-init: error: {message}" in lines[-1]


def test_a_run_without_validation_imports_nothing_of_it() -> None:
    slow = [
        "istio_init.rules.validation",
        "istio_init.rules.kernel.namespaces",
        "pyroute2",
        "ctypes",
        "decimal",
        "istio_init.rules.walk",
        "asyncio",
    ]
    program = (
        "import sys; from istio_init.cli.main import run; assert run(['istio-iptables', '-n', '-b', '*']) == 0; "
        f"print(*sorted(set(sys.modules) & set({slow})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.split() == []


def test_the_command_bears_todays_name() -> None:
    assert COMMAND.name == "istio-iptables"
    assert "istio-iptables" in dry("--help")
