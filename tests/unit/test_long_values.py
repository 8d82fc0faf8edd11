"""A value of thousands of characters is shortened wherever it is mentioned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from istio_init.cli import main
from istio_init.cli.bootstrap import COMMAND as BOOTSTRAP
from istio_init.cli.command import report
from istio_init.cli.inject import COMMAND as INJECT
from istio_init.core.errors import InvalidInput, NotPermitted
from istio_init.core.log import Level, Log
from istio_init.core.option import Kind
from istio_init.kubernetes.inject.settings import INJECT as INJECT_ANNOTATION
from istio_init.kubernetes.inject.settings import PROXY_IMAGE_ANNOTATION, STATUS, STATUS_PORT, TRAFFIC
from istio_init.kubernetes.webhook.review import answer
from istio_init.rules.commands import APPLY, ISTIO_IPTABLES
from istio_init.rules.options import OPTIONS
from tests.unit.inject_pods import template
from tests.webhook import stand_in
from tests.webhook.reviews import POD, encoded, review

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_LINE = 2000  # characters; a message about all of a command line's errors has several shortened values
VALUES = {"digits": "7" * 5000, "words": "7 x " * 1250, "a list": "10.0.0.1,x" * 500, "quotes": "'\"\\" * 1700}
each_value = pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))

COMMANDS = {
    "apply": ("apply", "--dry-run"),
    "istio-iptables": ("istio-iptables", "--dry-run"),
    "bootstrap": ("bootstrap", "--ip=10.1.1.1"),
    "inject": ("inject", "docker/pod.yaml"),
}
TABLES = {
    "apply": APPLY,
    "istio-iptables": ISTIO_IPTABLES,
    "bootstrap": BOOTSTRAP.options,
    "inject": INJECT.options,
}


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = capsys.readouterr().err.splitlines()
    assert [line for line in found if len(line) > LONGEST_LINE] == []
    return found


@each_value
@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (name, option.flags[-1])
        for name, options in TABLES.items()
        for option in options
        if option.flags and option.kind is not Kind.FLAG
    ],
)
def test_the_value_of_a_flag(command: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main.run((*COMMANDS[command], f"{flag}={value}"))
    assert len(lines(capsys)) >= (status != 0)


@each_value
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("written", ["{}", "--{}", "--{}=1", "-{}"])
def test_a_word_that_no_command_knows(command: str, written: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run((*COMMANDS[command], written.format(value))) == 2
    assert len(lines(capsys)) == 1


@each_value
def test_a_command_that_there_is_not(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run((value,)) == 2
    assert main.run(("lab", value)) == 2
    assert len(lines(capsys)) == 2


@each_value
@pytest.mark.parametrize(
    ("command", "variable"),
    [
        *((command, name) for option in OPTIONS for name in option.variables for command in ("apply", "istio-iptables")),
        ("apply", "ISTIO_CLUSTER_CONFIG"),
        ("bootstrap", "INSTANCE_IP"),
        ("bootstrap", "ISTIO_METAJSON_X"),
    ],
)
def test_the_value_of_a_variable(
    command: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    words = ("bootstrap",) if command == "bootstrap" else COMMANDS[command]
    status = main.run(words)
    assert len(lines(capsys)) >= (status != 0)


@each_value
def test_a_line_of_an_environment_file(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.env"
    monkeypatch.setenv("ISTIO_CLUSTER_CONFIG", str(file))
    for line in (value, f"{value}=1", f"ENVOY_PORT={value}"):
        file.write_text(line, encoding="utf-8")
        assert main.run(COMMANDS["apply"]) == 2
    assert len(lines(capsys)) == 3


def strange(value: str) -> dict[str, Any]:
    """Make pods that have a value in each place that a message may mention."""
    annotations = (*TRAFFIC, INJECT_ANNOTATION, STATUS, STATUS_PORT, PROXY_IMAGE_ANNOTATION, f"istio-init/{value}")
    pods = {name: template({name: value}) for name in annotations}
    pods["label"] = template(labels={INJECT_ANNOTATION: value})
    pods["account"] = template(serviceAccountName=value)
    pods["container"] = template(containers=[{"name": value, "ports": [{"containerPort": 15001}]}])
    pods["bad container"] = template(containers=[{"name": value, "ports": [{"containerPort": -1}]}])
    pods["port"] = template(containers=[{"name": "a", "ports": [{"containerPort": value}]}])
    pods["no name"] = template(volumes=[{"name": [value]}])
    pods["arguments"] = template(
        initContainers=[{"name": "istio-init", "args": ["-p", value]}],
        containers=[{"name": "istio-proxy", "args": ["proxy"]}],
    )
    return pods


@each_value
@pytest.mark.parametrize("place", strange(""))
def test_a_value_in_a_manifest(place: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **strange(value)[place if place != "istio-init/" else f"istio-init/{value}"]}
    pod["metadata"] |= {"name": value, "namespace": value}
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(pod), encoding="utf-8")
    for words in (("inject", str(file)), ("uninject", str(file)), ("bootstrap", "--manifest", str(file))):
        main.run(words)
    assert len(lines(capsys)) >= 3


@each_value
@pytest.mark.parametrize("member", ["name", "namespace", "subResource", "operation", "uid", "kind"])
def test_a_value_in_a_review(member: str, value: str) -> None:
    request: Any = {"kind": value} if member == "kind" else value
    found = answer(encoded(review(POD, **{member: request})), stand_in.inject)
    assert len(found.note) < LONGEST_LINE
    assert len(json.dumps({**found.review["response"], "uid": "", "patch": ""})) < LONGEST_LINE


@each_value
def test_the_value_of_q_which_apply_has_for_something_else(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(("apply", "-q", f"8{value}")) == 2
    assert len(lines(capsys)) == 1


@each_value
@pytest.mark.parametrize("log", [Log(), Log(json=True)], ids=["text", "json"])
def test_a_value_in_a_message_of_any_class(value: str, log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    errors = (InvalidInput(value, value, "anything"), NotPermitted(value.replace(" ", "_")), OSError(36, "no", value))
    for error in errors:
        report(error, log)
    assert len(lines(capsys)) == len(errors)


def test_what_tools_are_given_is_logged_whole(capsys: pytest.CaptureFixture[str]) -> None:
    Log(level=Level.DEBUG).debug("-d " + "10.0.0.0/8," * 500)
    assert len(capsys.readouterr().err) > 5000


def test_the_bad_one_of_many_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cidrs = [f"10.{number // 250}.{number % 250}.0/24" for number in range(1000)]
    assert main.run(("apply", "--dry-run", "-i", ",".join([*cidrs[:500], "10.300.0.0/24", *cidrs[500:]]))) == 2
    assert "'10.300.0.0/24' is not a CIDR" in capsys.readouterr().err
