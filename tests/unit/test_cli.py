"""The command line as a user meets it: what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from istio_init import Settings, __version__, build_plan, render
from istio_init.cli.main import run
from istio_init.rules.model import Family, Variant
from istio_init.rules.options import OPTIONS
from tests.privileges import give_up
from tests.unit.program import POD, TPROXY, call, printed, refused

if TYPE_CHECKING:
    from pathlib import Path

POD_PLAN = build_plan(Settings.of(proxy_uids="1337", service_cidrs="*", inbound_ports="9080"))
FORMATS = ("restore", "commands", "json", "table")
FAMILIES = {"all": tuple(Family), "ipv4": (Family.IPV4,), "ipv6": (Family.IPV6,)}
NOBODY = 65534
RUN_FLAGS = (
    "--family",
    "--backend",
    "--iptables-variant",
    "--lock-wait",
    "--log-format",
    "-v, --verbose",
    "-q, --quiet",
    "-h, --help",
)


# Help


def words_of_help(*arguments: str) -> str:
    done = call(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return " ".join(done.stdout.split())


def test_help_of_apply_lists_each_setting_with_flags_variables_and_default() -> None:
    text = words_of_help("apply", "--help")
    for option in OPTIONS:
        flags = [flag for flag in option.flags if flag != "-q"]
        if flags:
            assert f"{', '.join(flags)} {option.metavar}" in text
            assert not option.variables or f"[{', '.join(option.variables)}]" in text
        else:
            assert [variable for variable in option.variables if variable not in text] == []
    assert text.count("Default: ") >= sum(bool(option.flags) for option in OPTIONS)
    for word in ("-n, --dry-run", "--format", *FORMATS, *RUN_FLAGS):
        assert word in text
    for variable in ("ENVOY_USER", "ENABLE_INBOUND_IPV6", "ISTIO_CLUSTER_CONFIG", "ISTIO_SIDECAR_CONFIG"):
        assert variable in text


def test_help_of_clean_lists_its_flags() -> None:
    text = words_of_help("clean", "--help")
    for word in RUN_FLAGS:
        assert word in text
    assert "--dry-run" not in text


@pytest.mark.parametrize("command_name", [(), ("apply",), ("clean",)], ids=["none", "apply", "clean"])
def test_every_help_has_examples(command_name: tuple[str, ...]) -> None:
    done = call(*command_name, "--help")
    examples = re.findall(r"^    (istio-init.*)$", done.stdout, re.MULTILINE)
    assert len(examples) >= 2
    assert call(*command_name, "-h").stdout == done.stdout


def test_help_lists_commands_and_exit_codes() -> None:
    done = call("--help")
    assert re.findall(r"^    (\d)  ", done.stdout, re.MULTILINE) == list("012345")
    assert re.findall(r"^  (apply|clean)\b", done.stdout, re.MULTILINE) == ["apply", "clean"]


def test_the_version_is_told() -> None:
    done = call("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"istio-init, version {__version__}\n", "")


# Dry runs


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_dry_run_prints_the_plan_in_each_format_for_each_family(output_format: str, family: str) -> None:
    text = printed("--format", output_format, "--family", family, *POD)
    assert text == render(POD_PLAN, output_format, FAMILIES[family])


def test_a_dry_run_prints_a_restore_script_unless_told_otherwise() -> None:
    assert printed(*POD) == render(POD_PLAN, "restore")


def test_a_dry_run_names_the_variant_in_commands() -> None:
    text = printed("--format", "commands", "--iptables-variant", "nft", *POD)
    assert text == render(POD_PLAN, "commands", variant=Variant.NFT)


def test_flags_without_a_command_are_those_of_apply() -> None:
    assert call("-n", *TPROXY).stdout == call("apply", "-n", *TPROXY).stdout != ""


def test_long_flags_are_the_short_ones() -> None:
    short = {option.flags[0]: option.flags[-1] for option in OPTIONS if option.flags}
    long = tuple(short.get(word, word) for word in POD)
    assert printed(*long) == printed(*(f"{flag}={value}" for flag, value in zip(long[::2], long[1::2], strict=True)))
    assert printed(*long) == printed(*POD)


def test_values_come_from_the_environment_and_its_files(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.env"
    file.write_text("ENVOY_PORT=1001\nISTIO_INBOUND_PORTS=80\n")
    environment = {"ISTIO_SIDECAR_CONFIG": str(file), "ISTIO_INBOUND_PORTS": "81", "PROXY_UID": "5"}
    plan = build_plan(Settings.of(envoy_port="1001", inbound_ports="81", proxy_uids="6"))
    assert printed("-u", "6", environment=environment) == render(plan)


def test_an_empty_flag_does_not_swallow_the_next_one() -> None:
    assert printed("-x", "", "-b", "", "-u", "5") == render(build_plan(Settings.of(proxy_uids="5")))


def test_a_dry_run_needs_no_privileges() -> None:
    if os.geteuid() != 0:
        assert printed(*TPROXY).startswith("# istio-1.0, ipv4\n")
        return
    reachable = subprocess.run([sys.executable, "-c", "import istio_init"], check=False, capture_output=True, user=NOBODY)
    if reachable.returncode != 0:
        give_up("another user than root cannot read this checkout")
    done = call("-n", *TPROXY, user=NOBODY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == printed(*TPROXY)


def test_warnings_go_to_the_log_and_rules_to_the_output() -> None:
    done = call("-n", "-u", "1337", "-b", "80", "-d", "22", "-x", "10.1.2.3/8")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "istio-init: warning: -x/--istio-service-exclude-cidr: '10.1.2.3/8' has host bits set and is read as 10.0.0.0/8",
        "istio-init: warning: -d/--istio-local-exclude-ports has no effect: it applies only with -b '*'",
    ]
    assert done.stdout == printed("-u", "1337", "-b", "80", "-x", "10.0.0.0/8")


def test_quiet_hides_warnings_but_no_errors() -> None:
    assert call("-n", "-q", "-b", "80", "-d", "22").stderr == ""
    assert "'0' is not a port" in refused(call("-n", "-q", "-p", "0"))


# Bad input


BAD_INPUT: dict[str, tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "port 0": (("-p", "0"), {}, ("-p/--envoy-port", "'0'", "1..65535")),
    "port 0 of a variable": ((), {"ENVOY_PORT": "0"}, ("$ENVOY_PORT", "'0'", "1..65535")),
    "port 65536": (("-z", "65536"), {}, ("-z/--inbound-capture-port", "'65536'", "1..65535")),
    "port 65536 in a list": (("-b", "80,65536"), {}, ("-b/--istio-inbound-ports", "'65536'", "1..65535")),
    "word in a list": (("-b", "80,abc"), {}, ("-b/--istio-inbound-ports", "'abc'", "1..65535")),
    "word in a variable": ((), {"ISTIO_INBOUND_PORTS": "80,abc"}, ("$ISTIO_INBOUND_PORTS", "'abc'", "1..65535")),
    "shell word": (("-b", "80;reboot"), {}, ("-b/--istio-inbound-ports", "'80;reboot'", "1..65535")),
    "second rule": (("-b", "80\n-A OUTPUT"), {}, ("-b/--istio-inbound-ports", r"'80\n-A OUTPUT'", "1..65535")),
    "prefix length 33": (("-i", "10.0.0.0/33"), {}, ("-i/--istio-service-cidr", "'10.0.0.0/33'", "0..32")),
    "unknown mode": (("-m", "REDIRCT"), {}, ("-m/--istio", "'REDIRCT'", "did you mean REDIRECT?", "or TPROXY")),
    "unknown user": (("-u", "no-such-user"), {}, ("-u/--proxy-uid", "'no-such-user'", "names of existing users")),
    "unknown group": (("-g", "no-such-group"), {}, ("-g/--proxy-gid", "'no-such-group'", "names of existing groups")),
    "unknown user of Envoy": ((), {"ENVOY_USER": "no-such-user"}, ("$ENVOY_USER", "'no-such-user'", "existing users")),
    "no user": (("-u", ""), {}, ("-u/--proxy-uid", "''", "ids 0..4294967294")),
    "IPv6 CIDR": (("-i", "fd00::/8"), {}, ("-i/--istio-service-cidr", "'fd00::/8'", "IPv6", "an IPv4 address")),
    "IPv6 CIDR to exclude": (("-x", "::1/128"), {}, ("-x/--istio-service-exclude-cidr", "'::1/128'", "IPv4")),
    "everything excluded": (("-x", "*"), {}, ("-x/--istio-service-exclude-cidr", "'*'", "an IPv4 address")),
    "all among others": (("-b", "*,80"), {}, ("-b/--istio-inbound-ports", "'*,80'", "'*' alone")),
    "negative port": (("-p", "-1"), {}, ("-p/--envoy-port", "'-1' is not a port", "1..65535")),
    "negative capture port": (("-z", "-5"), {}, ("-z/--inbound-capture-port", "'-5' is not a port", "1..65535")),
    "negative user": (("-u", "-1"), {}, ("-u/--proxy-uid", "'-1'", "ids 0..4294967294")),
    "negative port in a list": (("-b", "-80"), {}, ("-b/--istio-inbound-ports", "'-80' is not a port", "1..65535")),
    "mark 0": (("-t", "0"), {}, ("-t/--istio-inbound-tproxy-mark", "'0'", "1..4294967295")),
    "table of the system": (("-r", "254"), {}, ("-r/--istio-inbound-tproxy-route-table", "'254'", "except 253..255")),
    "no argument at the end": (("-b",), {}, ("-b", "no value was given", "''")),
    "no argument before a flag": (("-b", "-d", ""), {}, ("-b/--istio-inbound-ports", "'-d'", "''")),
    "no argument before a long flag": (("-x", "--istio-inbound-ports", "80"), {}, ("-x", "'--istio-inbound-ports'", "''")),
    "no argument of a long flag": (("--proxy-uid",), {}, ("--proxy-uid", "no value was given", "''")),
    "unknown flag": (("--frobnicate",), {}, ("--frobnicate", "--help")),
    "extra argument": (("80",), {}, ("80", "--help")),
    "unknown format": (("--format", "yaml"), {}, ("--format", "'yaml'", *FORMATS)),
    "unknown family": (("--family", "ipv5"), {}, ("--family", "'ipv5'", "ipv4", "ipv6", "all")),
    "negative wait": (("--lock-wait", "-1"), {}, ("--lock-wait", "-1", "0..3600")),
    "file that is not there": ((), {"ISTIO_CLUSTER_CONFIG": "/nowhere.env"}, ("$ISTIO_CLUSTER_CONFIG", "'/nowhere.env'")),
}  # fmt: skip


@pytest.mark.parametrize("dry", [True, False], ids=["dry-run", "apply"])
@pytest.mark.parametrize(("arguments", "environment", "words"), BAD_INPUT.values(), ids=list(BAD_INPUT))
def test_bad_input_is_refused_in_one_line(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    words: tuple[str, ...],
    *,
    dry: bool,
) -> None:
    line = refused(call(*(("-n",) if dry else ()), *arguments, environment=environment))
    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize("arguments", [("-b", "9" * 100_000), ("-b", "-" * 100_000), ("9" * 100_000,)])
def test_a_long_value_is_shortened_in_its_refusal(arguments: tuple[str, ...]) -> None:
    line = refused(call("apply", "-n", *arguments))
    assert "…" in line
    assert len(line) < 500


def test_a_long_value_is_refused_with_what_is_wrong_with_it() -> None:
    line = refused(call("-n", "-b", "9" * 100_000))
    assert "-b/--istio-inbound-ports: '999" in line
    assert "999' is not a port or range (allowed: ports 1..65535" in line


def test_bad_lines_of_files_are_refused_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "cluster.env"
    file.write_text("ENVOY_PORT=15001\n$(reboot)\n")
    line = refused(call("-n", environment={"ISTIO_CLUSTER_CONFIG": str(file)}))
    assert f"{file}:2: '$(reboot)' is not KEY=value" in line


def test_a_format_without_a_dry_run_is_refused() -> None:
    line = refused(call("--format", "json", *POD))
    assert "--format" in line
    assert "--dry-run" in line


@pytest.mark.parametrize("arguments", [("-b", "80"), ("--dry-run",), ("extra",)])
def test_clean_takes_no_settings(arguments: tuple[str, ...]) -> None:
    assert arguments[0] in refused(call("clean", *arguments))


@pytest.mark.parametrize("arguments", [("-p", "0"), ("--format", "json"), ("--frobnicate",), ("-b",), ("-b", "-d", "")])
def test_errors_are_json_where_the_log_is(arguments: tuple[str, ...]) -> None:
    done = call("--log-format", "json", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    record = json.loads(line)
    assert set(record) == {"time", "level", "message"}
    assert record["level"] == "error"
    assert arguments[0] in record["message"]


def test_warnings_are_json_where_the_log_is() -> None:
    done = call("-n", "--log-format", "json", "-b", "80", "-d", "22")
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "warning"
    assert done.stdout == printed("-b", "80")


# An extra that is missing


def test_a_lab_without_its_modules_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("istio_init.cli.lab.EXTRA", ("no_such_module",))
    assert run(["lab", "status"]) == 4
    assert capsys.readouterr().err == (
        "istio-init: error: the lab needs no_such_module; run: pip install 'istio-init[lab]'\n"
    )
