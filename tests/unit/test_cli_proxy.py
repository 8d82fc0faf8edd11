"""`istio-init proxy` as a process: what it refuses, and what it does with an Envoy that is a script of a few lines."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.privileges import need_namespaces
from tests.unit.program import call, command, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 30.0  # seconds for anything to happen
POLL = 0.02
SLEEP = shutil.which("sleep") or "sleep"

# The container istio-proxy of a productpage pod as Istio 1.0.5 injects it.
POD_ARGUMENTS = (
    *("proxy", "sidecar"),
    *("--configPath", "/etc/istio/proxy"),
    *("--binaryPath", "/usr/local/bin/envoy"),
    *("--serviceCluster", "productpage"),
    *("--drainDuration", "45s"),
    *("--parentShutdownDuration", "1m0s"),
    *("--discoveryAddress", "istio-pilot.istio-system:15007"),
    *("--discoveryRefreshDelay", "1s"),
    *("--zipkinAddress", "zipkin.istio-system:9411"),
    *("--connectTimeout", "10s"),
    *("--proxyAdminPort", "15000"),
    *("--controlPlaneAuthPolicy", "NONE"),
)
POD_ENVIRONMENT = {
    "POD_NAME": "productpage-v1-6f5ccd8bbd-xrzqs",
    "POD_NAMESPACE": "default",
    "INSTANCE_IP": "10.1.1.1",
    "ISTIO_META_POD_NAME": "productpage-v1-6f5ccd8bbd-xrzqs",
    "ISTIO_META_INTERCEPTION_MODE": "REDIRECT",
    "ISTIO_METAJSON_LABELS": '{"app":"productpage","version":"v1"}\n',
}
POD_ENVOY = (
    *("--restart-epoch", "0"),
    *("--drain-time-s", "45"),
    *("--parent-shutdown-time-s", "60"),
    *("--service-cluster", "productpage"),
    *("--service-node", "sidecar~10.1.1.1~productpage-v1-6f5ccd8bbd-xrzqs.default~default.svc.cluster.local"),
    *("-l", "warn"),
)

# An Envoy that writes down what it was started with; what it does then is up to the test.
STAND_IN = """\
#!/bin/sh
{preparation}
cd {directory} || exit 99
while read -r key value; do
    case $key in SigBlk: | SigIgn:) echo "$key $value" ;; esac
done </proc/$$/status >signals
line=$$
for word; do line="$line[$word]"; done
echo "$line" >>started
{behaviour}
"""
# Until it is told to end, but not for ever, should a test fail.
LIVES = f"i=0; while [ $i -lt 1200 ]; do {SLEEP} 0.05; i=$((i + 1)); done; exit 98"


class Stage:
    """A directory with an Envoy, and the programs that a test starts in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.envoy = directory / "bin" / "envoy"
        self.envoy.parent.mkdir()
        self.config = directory / "made" / "proxy"
        self.log = directory / "stderr"
        self._programs: list[subprocess.Popen[bytes]] = []
        self.behave("exit 0")

    def behave(self, behaviour: str, preparation: str = "") -> None:
        text = STAND_IN.format(directory=self.directory, behaviour=behaviour, preparation=preparation)
        self.envoy.write_text(text, encoding="utf-8")
        self.envoy.chmod(0o755)

    def live_and_obey(self, status: int = 0) -> None:
        self.behave(LIVES, f"trap 'exit {status}' TERM")

    def arguments(self, **flags: str) -> list[str]:
        given = dict(zip(POD_ARGUMENTS[2::2], POD_ARGUMENTS[3::2], strict=True))
        # An administration that does not answer is not waited for.
        own = {"configPath": str(self.config), "binaryPath": str(self.envoy), "proxyAdminPort": str(free_port())}
        for name, value in {**own, **flags}.items():
            given[f"--{name}"] = value
        return ["proxy", "sidecar", *(word for name, value in given.items() for word in (name, value))]

    def start(self, *more: str, **flags: str) -> subprocess.Popen[bytes]:
        return self.start_words(command(*self.arguments(**flags), *more))

    def start_words(self, words: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        (self.directory / "stdin").write_text("not for Envoy\n", encoding="utf-8")
        with self.log.open("wb") as log, (self.directory / "stdin").open("rb") as text:
            program = subprocess.Popen(
                words,
                stdin=text,
                stdout=log,
                stderr=log,
                env={"PATH": "", **POD_ENVIRONMENT, **(environment or {})},
            )
        self._programs.append(program)
        return program

    def run(self, *more: str, **flags: str) -> int:
        return ended(self.start(*more, **flags))

    def pids(self) -> list[int]:
        return [int(line.partition("[")[0]) for line in self._starts()]

    def argvs(self) -> list[tuple[str, ...]]:
        return [tuple(re.findall(r"\[([^]]*)\]", line)) for line in self._starts()]

    def _starts(self) -> list[str]:
        file = self.directory / "started"
        return (
            [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if "\n" in line]
            if file.exists()
            else []
        )

    def messages(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines()

    def bootstrap(self, epoch: int = 0) -> Any:
        return json.loads((self.config / f"envoy-rev{epoch}.json").read_text(encoding="utf-8"))

    def end(self) -> None:
        for program in self._programs:
            if program.poll() is None:
                program.kill()
            program.wait(TIMEOUT)
        for pid in self.pids():
            with suppress(ProcessLookupError, FileNotFoundError):
                if str(self.envoy).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.end()


def ended(program: subprocess.Popen[bytes]) -> int:
    return program.wait(TIMEOUT)


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < deadline, f"it took too long: {what}"
        time.sleep(POLL)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Bad input.


BAD: dict[str, tuple[dict[str, str], dict[str, str], str]] = {
    "metadata that is cut off": ({}, {"ISTIO_METAJSON_LABELS": '{"app":'}, "$ISTIO_METAJSON_LABELS"),
    "metadata that is a list": ({}, {"ISTIO_METAJSON_X": "[1]"}, "$ISTIO_METAJSON_X"),
    "metadata that is no text": ({}, {"ISTIO_META_X": "\udcff"}, "$ISTIO_META_X"),
    "a duration without unit": ({"drainDuration": "45"}, {}, "--drainDuration"),
    "a drain of half a second": ({"drainDuration": "1.5s"}, {}, "--drainDuration"),
    "a shutdown before the drain": ({"parentShutdownDuration": "45s"}, {}, "--parentShutdownDuration"),
    "no time to connect": ({"connectTimeout": "0s"}, {}, "--connectTimeout"),
    "half an address": ({"ip": "10.0.0"}, {}, "--ip"),
    "half an address in the environment": ({}, {"INSTANCE_IP": "10.0.0"}, "$INSTANCE_IP"),
    "a control plane without port": ({"discoveryAddress": "istio-pilot"}, {}, "--discoveryAddress"),
    "a tracer on no port": ({"zipkinAddress": "zipkin:70000"}, {}, "--zipkinAddress"),
    "statistics to a name": ({"statsdUdpAddress": "statsd:9125"}, {}, "--statsdUdpAddress"),
    "an administration on no port": ({"proxyAdminPort": "0"}, {}, "--proxyAdminPort"),
    "a policy that is none": ({"controlPlaneAuthPolicy": "TLS"}, {}, "--controlPlaneAuthPolicy"),
    "a status port that is none": ({"statusPort": "http"}, {}, "--statusPort"),
    "ports of the app that are none": ({"applicationPorts": "80,x"}, {}, "--applicationPorts"),
    "a log level that is none": ({"proxyLogLevel": "loud"}, {}, "--proxyLogLevel"),
    "a file that is not there": ({"customConfigFile": "/nowhere.json"}, {}, "--customConfigFile"),
    "a file that is a directory": ({"customConfigFile": "/"}, {}, "--customConfigFile"),
    "an addition that is not there": ({"bootstrap-override": "/nowhere.yaml"}, {}, "--bootstrap-override"),
    "an Envoy that is not there": ({"binaryPath": "/nowhere/envoy"}, {}, "--binaryPath"),
    "an Envoy that is on no path": ({"binaryPath": "envoy"}, {}, "--binaryPath"),
    "an Envoy that is a directory": ({"binaryPath": "/"}, {}, "--binaryPath"),
    "an Envoy that is no program": ({"binaryPath": "/dev/null"}, {}, "--binaryPath"),
    "a directory that nobody can make": ({"configPath": "/proc/istio/proxy"}, {}, "--configPath"),
    "a directory below a device": ({"configPath": "/dev/null/proxy"}, {}, "--configPath"),
    "a directory that is a device": ({"configPath": "/dev/null"}, {}, "--configPath"),
}


def refused_and_nothing_written(stage: Stage, *more: str, environment: dict[str, str] | None = None, **flags: str) -> str:
    before = sorted(stage.directory.rglob("*"))
    words = [*stage.arguments(**flags), *more]
    line = refused(call(*words, environment={**POD_ENVIRONMENT, **(environment or {})}))
    assert sorted(stage.directory.rglob("*")) == before, "neither a file was written nor Envoy started"
    return line.removeprefix("istio-init: error: ")


@pytest.mark.parametrize(("flags", "environment", "named"), BAD.values(), ids=list(BAD))
def test_bad_input_is_named_in_one_line_and_nothing_is_written(
    flags: dict[str, str], environment: dict[str, str], named: str, stage: Stage
) -> None:
    assert refused_and_nothing_written(stage, environment=environment, **flags).startswith(f"{named}: ")


def test_a_status_port_in_use_is_named_and_nothing_is_written(stage: Stage) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        line = refused_and_nothing_written(stage, statusPort=str(port))
    assert line.startswith(f"--statusPort: cannot listen on {port}: Address already in use")


def test_an_addition_that_is_no_object_is_named_and_nothing_is_written(stage: Stage) -> None:
    file = stage.directory / "mine.yaml"
    file.write_text("- 1\n", encoding="utf-8")
    assert refused_and_nothing_written(stage, "--bootstrap-override", str(file)).startswith("--bootstrap-override: ")


def test_an_envoy_that_may_not_be_run_is_named_and_nothing_is_written(stage: Stage) -> None:
    stage.envoy.chmod(0o644)
    assert refused_and_nothing_written(stage).startswith("--binaryPath: ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("proxy", "gateway"), "role: 'gateway'"),
        (("proxy", "sidecar", "ingress"), "ingress"),
        (("proxy", "--noSuchFlag", "x"), "--noSuchFlag"),
        (("proxy", "--serviceCluster"), "--serviceCluster"),
        (("proxy", "--serviceCluster", "--id", "x"), "--serviceCluster"),
    ],
    ids=["a role that is none", "two roles", "a flag that is none", "a value at the end", "a value before a flag"],
)
def test_a_word_that_is_not_understood_is_named(words: tuple[str, ...], named: str) -> None:
    assert named in refused(call(*words, environment=POD_ENVIRONMENT))


def test_a_file_that_cannot_be_written_is_named_before_envoy_is_started(stage: Stage) -> None:
    (stage.config / "envoy-rev0.json").mkdir(parents=True)
    assert stage.run() == 2
    (line,) = stage.messages()
    assert line.startswith("istio-init: error: --configPath: cannot write ")
    assert stage.argvs() == []


# What Envoy gets.


def test_envoy_is_started_with_the_pods_arguments_on_the_file_that_was_made(stage: Stage) -> None:
    assert stage.run() == 0
    assert stage.argvs() == [("-c", str(stage.config / "envoy-rev0.json"), *POD_ENVOY)]
    made = stage.bootstrap()
    assert made["node"]["cluster"] == "productpage"
    assert made["node"]["metadata"]["app"] == "productpage"
    assert [file.name for file in stage.config.iterdir()] == ["envoy-rev0.json"]


def test_the_file_is_for_all_to_read_in_a_directory_of_this_user(stage: Stage) -> None:
    before = os.umask(0o077)
    try:
        assert stage.run() == 0
    finally:
        os.umask(before)
    assert stage.config.stat().st_mode & 0o777 == 0o700
    assert (stage.config / "envoy-rev0.json").stat().st_mode & 0o777 == 0o644


def test_an_envoy_of_istio_1_0_gets_its_own_arguments_and_file(stage: Stage) -> None:
    assert stage.run("--envoy-api", "v2", availabilityZone="zone-1") == 0
    (argv,) = stage.argvs()
    extras = ("--max-obj-name-len", "189", "--allow-unknown-fields", "--v2-config-only", "--service-zone", "zone-1")
    assert argv[2:] == (*POD_ENVOY, *extras)
    assert "hosts" in stage.bootstrap()["static_resources"]["clusters"][0]


def test_a_custom_file_is_used_where_it_is_and_none_is_made(stage: Stage) -> None:
    file = stage.directory / "custom.json"
    file.write_text("{}", encoding="utf-8")
    assert stage.run(customConfigFile=str(file)) == 0
    assert stage.argvs() == [("-c", str(file), *POD_ENVOY)]
    assert not stage.config.exists()


def test_an_envoy_on_the_path_is_found_by_its_name(stage: Stage) -> None:
    words = command(*stage.arguments(binaryPath="envoy"))
    assert ended(stage.start_words(words, {"PATH": str(stage.envoy.parent)})) == 0
    assert len(stage.argvs()) == 1


def signals(stage: Stage) -> list[int]:
    """Read the signals that Envoy was started with, blocked and ignored (proc(5)), the C library's own left out."""
    text = (stage.directory / "signals").read_text(encoding="utf-8")
    return [int(mask, 16) & 0x7FFFFFFF for mask in re.findall(r"Sig\w+: (\w+)", text)]


def test_envoy_is_started_with_the_signals_of_the_program(stage: Stage) -> None:
    subprocess.run([str(stage.envoy)], check=True, timeout=TIMEOUT)
    blocked, ignored = signals(stage)
    assert blocked == 0
    assert stage.run() == 0
    assert signals(stage) == [0, ignored]


def test_what_envoy_writes_and_the_environment_pass_through(stage: Stage) -> None:
    stage.behave('echo "$POD_NAME" >&2; read -r line || echo "no input"')
    assert stage.run("-q") == 0
    assert stage.messages() == [POD_ENVIRONMENT["POD_NAME"], "no input"]


# Its end.


def test_an_envoy_that_ends_with_success_ends_the_program_with_success(stage: Stage) -> None:
    assert stage.run() == 0
    assert stage.messages()[-1] == "istio-init: envoy, epoch 0, exited with status 0"
    assert not [line for line in stage.messages() if "warning" in line]


def test_an_envoy_that_fails_is_tried_again_with_growing_delays_until_a_signal_comes(stage: Stage) -> None:
    stage.behave("exit 7")
    began = time.monotonic()
    program = stage.start()
    until(lambda: sum("trying again" in line for line in stage.messages()) >= 3, "three tries")
    assert time.monotonic() - began >= 0.2 + 0.4
    program.send_signal(signal.SIGTERM)
    assert ended(program) == 143
    told = [line for line in stage.messages() if "trying again" in line]
    assert told[:3] == [
        f"istio-init: warning: envoy, epoch 0, exited with status 7; trying again in {delay} s"
        for delay in ("0.2", "0.4", "0.8")
    ]
    assert len(stage.argvs()) == len(told)
    assert set(stage.argvs()) == {("-c", str(stage.config / "envoy-rev0.json"), *POD_ENVOY)}


def test_an_envoy_that_the_system_cannot_run_is_told(stage: Stage) -> None:
    stage.envoy.write_text("#!/nowhere/sh\n", encoding="utf-8")
    program = stage.start()
    until(lambda: "trying again" in "".join(stage.messages()), "the first try")
    program.send_signal(signal.SIGTERM)
    assert ended(program) == 143
    assert re.search(r"cannot start '.*envoy': .*; trying again in 0\.2 s", stage.messages()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("status", [0, 7])
def test_a_signal_ends_envoy_and_its_exit_status_is_handed_on(number: signal.Signals, status: int, stage: Stage) -> None:
    stage.live_and_obey(status)
    program = stage.start()
    until(stage.pids, "the start")
    program.send_signal(number)
    assert ended(program) == status
    assert not Path(f"/proc/{stage.pids()[0]}").exists()
    assert len(stage.argvs()) == 1


def test_an_envoy_that_a_signal_ended_gives_the_signals_status(stage: Stage) -> None:
    stage.behave(f"exec {SLEEP} 60")
    program = stage.start()
    until(stage.pids, "the start")
    program.send_signal(signal.SIGTERM)
    assert ended(program) == 143
    assert stage.messages()[-1] == "istio-init: envoy, epoch 0, was terminated by SIGTERM"


def test_an_interrupt_at_a_terminal_reaches_envoy_only_through_the_program(stage: Stage) -> None:
    stage.behave(LIVES, "trap 'exit 3' INT; trap 'exit 0' TERM")
    own_group = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    program = stage.start_words([sys.executable, "-c", own_group, *command(*stage.arguments())])
    until(stage.pids, "the start")
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    assert ended(program) == 0


def test_an_end_is_noticed_also_where_ends_of_children_were_ignored(stage: Stage) -> None:
    started = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    assert ended(stage.start_words([sys.executable, "-c", started, *command(*stage.arguments())])) == 0


def test_a_signal_that_comes_at_the_very_end_changes_nothing() -> None:
    program = """
import os, signal
from istio_init.core.processes import block_signals, wake_up
with block_signals():
    wake_up()
    os.kill(os.getpid(), signal.SIGTERM)
print("the end")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


def test_readiness_is_served_while_envoy_runs(stage: Stage) -> None:
    stage.live_and_obey()
    port = free_port()
    program = stage.start(statusPort=str(port))
    until(stage.pids, "the start")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/healthz/ready")
        response = connection.getresponse()
        assert response.status == 503
        assert b"Envoy's admin interface does not respond" in response.read()
    program.send_signal(signal.SIGTERM)
    assert ended(program) == 0


def test_the_log_can_be_json_and_quiet(stage: Stage) -> None:
    assert stage.run("--log-format", "json") == 0
    assert [json.loads(line)["level"] for line in stage.messages()] == ["info", "info"]
    assert stage.run("-q") == 0
    assert stage.messages() == []


# A pod's own paths, in a pod's own namespaces.

POD_FILES = """
set -e
layers=$1/layers envoy=$1/bin/envoy
mkdir "$layers"
mount -t tmpfs tmpfs "$layers"
for place in /etc /usr/local/bin; do
    mkdir -p "$layers/upper$place" "$layers/work$place"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$layers/upper$place,workdir=$layers/work$place" "$place"
done
cp "$envoy" /usr/local/bin/envoy
mkdir -p /etc/certs
shift
exec "$@"
"""


def start_pod(stage: Stage, **changes: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the pod's command where /etc and /usr/local/bin are its own; give it and its root directory."""
    need_namespaces()
    words = [changes.get(word, word) for word in POD_ARGUMENTS]
    inside = ["/bin/sh", "-c", POD_FILES, "sh", str(stage.directory), *command(*words)]
    program = stage.start_words([shutil.which("unshare") or "unshare", "-n", "-m", *inside], {"PATH": os.environ["PATH"]})
    until(lambda: stage.pids() or program.poll() is not None, "the start")
    return program, Path(f"/proc/{program.pid}/root")


def test_the_pods_command_runs_unchanged(stage: Stage) -> None:
    stage.live_and_obey()
    program, root = start_pod(stage)
    assert stage.argvs() == [("-c", "/etc/istio/proxy/envoy-rev0.json", *POD_ENVOY)]
    stage.config = root / "etc/istio/proxy"
    assert stage.bootstrap()["admin"]["address"]["socket_address"]["port_value"] == 15000
    assert stage.config.stat().st_mode & 0o777 == 0o700
    assert (stage.config / "envoy-rev0.json").stat().st_mode & 0o777 == 0o644
    program.send_signal(signal.SIGTERM)
    assert ended(program) == 0


def test_a_new_certificate_starts_the_next_epoch_with_a_file_of_its_own(stage: Stage) -> None:
    stage.live_and_obey()
    program, root = start_pod(stage)
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        (root / "etc/certs" / name).write_text("second", encoding="utf-8")
    until(lambda: len(stage.argvs()) == 2, "the next epoch")
    first, second = stage.argvs()
    assert second == tuple({"0": "1", first[1]: first[1].replace("rev0", "rev1")}.get(word, word) for word in first)
    names = sorted(file.name for file in (root / "etc/istio/proxy").iterdir())
    assert names == ["envoy-rev0.json", "envoy-rev1.json"]
    program.send_signal(signal.SIGTERM)
    assert ended(program) == 0
    assert not [pid for pid in stage.pids() if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("text", ["not json", "[]", "{a: 1}\n---\n{b: 2}\n", "a: [\n", "\t{", ""])
def test_a_custom_file_that_is_no_object_is_named_and_envoy_is_not_started(text: str, stage: Stage) -> None:
    file = stage.directory / "custom.yaml"
    file.write_text(text, encoding="utf-8")
    error = refused(call(*stage.arguments(customConfigFile=str(file))))
    assert "--customConfigFile" in error
    assert not stage.config.exists()
