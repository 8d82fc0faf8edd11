"""The rules and the proxy of one pod: where they contradict each other, and how `bootstrap` tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from istio_init.kubernetes.agreement import MESH_PORTS, Pair, contradictions, listener_ports
from istio_init.kubernetes.halves import read_rules
from istio_init.rules.layout import CURRENT
from istio_init.rules.settings import Settings
from istio_init.sidecar.bootstrap import render_bootstrap
from istio_init.sidecar.bootstrap.settings import parse_proxy_settings
from tests.proxies import POD_ENVIRONMENT, POD_FLAGS
from tests.sweeps import sweep
from tests.unit.program import call, refused

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.program import Result

POD_RULES = "-p 15001 -u 1337 -m REDIRECT -i '*' -x \"\" -b 9080 -d ''"
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: productpage}
spec:
  initContainers:
  - name: istio-init
    args: [%s]
  containers:
  - name: productpage
    ports: [{containerPort: %d}]
  - name: istio-proxy
    args: [proxy, sidecar, --serviceCluster, productpage]
    env:
    - {name: ISTIO_META_INTERCEPTION_MODE, value: REDIRECT}
    securityContext: {runAsUser: %d}
    ports: [{containerPort: 15090}]
"""


def pair(
    rules: dict[str, str] | None = None,
    proxy: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    **others: Any,
) -> Pair:
    """Make the productpage's pair, but for what is given."""
    settings = Settings.of(**{"proxy_uids": "1337", "service_cidrs": "*", "inbound_ports": "9080", **(rules or {})})
    environment = POD_ENVIRONMENT if environment is None else environment
    return Pair(settings, parse_proxy_settings("sidecar", {**POD_FLAGS, **(proxy or {})}, environment, "10.1.1.1"), **others)


AGREEING = {
    "the pod of Istio 1.0": pair(),
    "today's inbound port": pair({"inbound_capture_port": "15006"}),
    "all inbound ports": pair({"inbound_ports": "*"}),
    "ports beside the mesh's": pair({"inbound_ports": "1-14999,15002-15005,15091-65535"}),
    "a listener of the bootstrap's own": pair({"envoy_port": "15002"}, listeners=frozenset({15002})),
    "an inbound listener of its own": pair({"inbound_capture_port": "15007"}, listeners=frozenset({15007})),
    "one user of several": pair({"proxy_uids": "1000,1337"}),
    "another user": pair({"proxy_uids": "1000"}, run_as_uid=1000),
    "the group": pair({"proxy_uids": "1000", "proxy_gids": "1337"}, run_as_gid=1337),
    "TPROXY": pair({"mode": "TPROXY"}, environment={"ISTIO_META_INTERCEPTION_MODE": "TPROXY"}),
    "TPROXY that nobody told": pair({"mode": "TPROXY"}, environment={}),
    "TPROXY and an empty variable": pair({"mode": "TPROXY"}, environment={"ISTIO_META_INTERCEPTION_MODE": ""}),
    "readiness that is off": pair({}, {"statusPort": "0"}),
    "an app's port": pair(container_ports=(("productpage", 9080),)),
}


@sweep("both", AGREEING.values(), ids=list(AGREEING))
def test_halves_that_fit_have_no_contradiction(both: Pair) -> None:
    assert contradictions(both) == ()


CONTRADICTING = {
    "outbound port": (pair({"envoy_port": "15002"}), ["-p is 15002", "outbound", "15001"]),
    "inbound port": (pair({"inbound_capture_port": "15007"}), ["-z is 15007", "inbound", "15001 or 15006"]),
    "inbound listener for outbound": (
        pair({"envoy_port": "15006", "inbound_capture_port": "15006"}),
        ["-p is 15006", "outbound", "15001"],
    ),
    "outbound to administration": (pair({"envoy_port": "15000"}), ["-p is 15000", "administration (--proxyAdminPort)"]),
    "administration on the listener's port": (pair({}, {"proxyAdminPort": "15001"}), ["-p is 15001", "--proxyAdminPort"]),
    "inbound to administration": (
        pair({"inbound_capture_port": "15999"}, {"proxyAdminPort": "15999"}),
        ["-z is 15999", "--proxyAdminPort", "15001 or 15006"],
    ),
    "outbound to metrics": (pair({"envoy_port": "15090"}, listeners=frozenset({15090})), ["-p is 15090", "Prometheus"]),
    "inbound to readiness": (
        pair({"inbound_capture_port": "15020"}, {"statusPort": "15020"}),
        ["-z is 15020", "readiness (--statusPort)"],
    ),
    "user": (pair({"proxy_uids": "1000,0"}), ["-u is 1000,0", "uid 1337"]),
    "user, and a group that is not known": (pair({"proxy_uids": "1000", "proxy_gids": "1337"}), ["-u is 1000", "1337"]),
    "user and group": (pair({"proxy_uids": "5", "proxy_gids": "6"}, run_as_gid=7), ["-u is 5", "uid 1337"]),
    "mode": (pair({"mode": "TPROXY"}), ["-m is TPROXY", "ISTIO_META_INTERCEPTION_MODE", "REDIRECT"]),
    "no mode": (
        pair(environment={"ISTIO_META_INTERCEPTION_MODE": "NONE"}),
        ["-m is REDIRECT", "ISTIO_META_INTERCEPTION_MODE", "NONE"],
    ),
    "captured range": (
        pair({"inbound_ports": "80,15000-15001"}),
        ["-b 15000:15001", "15000 is Envoy's administration", "15001 is the outbound listener"],
    ),
    "readiness of an app": (pair({}, {"applicationPorts": "9080,15021"}), ["--applicationPorts 15021", "is readiness"]),
    "container": (
        pair(container_ports=(("productpage", 9080), ("metrics", 15090))),
        ["containerPort 15090 of container 'metrics'", "Prometheus"],
    ),
    "this proxy's administration": (
        pair({"inbound_ports": "9080"}, {"proxyAdminPort": "9080"}),
        ["-b 9080", "9080 is Envoy's administration (--proxyAdminPort)"],
    ),
    "this proxy's readiness": (pair({}, {"statusPort": "9080"}), ["-b 9080", "9080 is readiness (--statusPort)"]),
    "this pod's outbound port": (
        pair({"envoy_port": "9080"}, listeners=frozenset({9080})),
        ["-b 9080", "9080 is the outbound listener (-p)"],
    ),
    "this pod's inbound port": (
        pair({"inbound_capture_port": "9080"}, listeners=frozenset({9080})),
        ["-b 9080", "9080 is the inbound listener (-z)"],
    ),
}


@sweep(("both", "words"), CONTRADICTING.values(), ids=list(CONTRADICTING))
def test_a_contradiction_is_one_line_with_both_values(both: Pair, words: list[str]) -> None:
    (line,) = contradictions(both)
    assert [word for word in words if word not in line] == []
    assert "\n" not in line


@pytest.mark.parametrize("port", [15000, 15001, 15006, 15020, 15021, 15053, 15090])
def test_an_app_on_a_port_of_the_mesh_is_told_what_is_there(port: int) -> None:
    (line,) = contradictions(pair({"inbound_ports": str(port)}))
    assert line.startswith(f"-b {port}: ")
    assert line.endswith(f"{port} is {MESH_PORTS[port]}")


def test_an_app_on_the_port_that_the_rules_give_to_dns_is_told() -> None:
    dns = {"redirect_dns": "true", "capture_all_dns": "true", "dns_port": "15153"}
    settings = Settings.of(CURRENT, **dns, inbound_ports="15153", inbound_capture_port="15001")
    (line,) = contradictions(pair()._replace(rules=settings))
    assert line == "-b 15153: an app cannot have ports of the mesh: 15153 is DNS (--dns-port)"


def test_every_contradiction_of_a_pair_is_told() -> None:
    both = pair(
        {"envoy_port": "1", "inbound_capture_port": "2", "proxy_uids": "3", "mode": "TPROXY", "inbound_ports": "15053"}
    )
    assert [line.split()[0] for line in contradictions(both)] == ["-p", "-z", "-u", "-m", "-b"]


@pytest.mark.parametrize("flavour", ["v3", "v2"])
def test_the_listener_of_a_rendered_bootstrap_is_found(flavour: str) -> None:
    assert listener_ports(json.loads(render_bootstrap(pair().proxy, flavour))) == {15090}


@pytest.mark.parametrize(
    "bootstrap",
    [None, [], "x", {"static_resources": []}, {"static_resources": {"listeners": [None, {"address": 1}]}}],
)
def test_what_has_no_listeners_has_no_ports(bootstrap: object) -> None:
    assert listener_ports(bootstrap) == frozenset()


# As a user meets it


def check(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return call("bootstrap", "--ip", "10.1.1.1", *arguments, environment=environment)


def agreed(done: Result) -> dict[str, Any]:
    """Give the bootstrap that is printed where both halves agree."""
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("istio-init: both halves agree: ")
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def manifest(tmp_path: Path, rules: str = '"-u", "1337", "-b", "9080"', port: int = 9080, user: int = 1337) -> str:
    file = tmp_path / "pod.yaml"
    file.write_text(MANIFEST % (rules, port, user), encoding="utf-8")
    return str(file)


def test_where_both_halves_agree_the_bootstrap_is_printed() -> None:
    done = call("bootstrap", "--interception", POD_RULES, environment=POD_ENVIRONMENT)
    assert agreed(done)
    assert done.stdout == call("bootstrap", environment=POD_ENVIRONMENT).stdout


def test_contradictions_are_told_line_by_line_and_nothing_is_written(tmp_path: Path) -> None:
    output = tmp_path / "envoy.json"
    flags = "-p 15002 -u 5 -m TPROXY -b 15090"
    done = check("--interception", flags, "-o", str(output), environment=POD_ENVIRONMENT)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [line.split()[:3] for line in lines] == [["istio-init:", "error:", flag] for flag in ("-p", "-u", "-m", "-b")]
    assert not output.exists()


def test_the_user_that_envoy_runs_as_can_be_told(tmp_path: Path) -> None:
    agreed(check("--interception", "-u 5", "--run-as-uid", "5"))
    assert "uid 1337" in refused(check("--interception", "-u 5"))
    assert "uid 6" in refused(check("--interception", "-u 1337", "--run-as-uid", "6"))
    agreed(check("--manifest", manifest(tmp_path, user=6), "--run-as-uid", "1337"))


def test_without_a_user_the_rules_take_their_own_default() -> None:
    agreed(check("--interception", ""))


def test_variables_of_this_machine_are_not_those_of_the_init_container(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.env"
    file.write_text("ENVOY_PORT=1", encoding="utf-8")
    agreed(check("--interception", POD_RULES, environment={"ENVOY_PORT": "1", "ISTIO_SIDECAR_CONFIG": str(file)}))
    agreed(
        check("--manifest", manifest(tmp_path), environment={"ENVOY_PORT": "1", "ISTIO_META_INTERCEPTION_MODE": "TPROXY"})
    )


def test_a_listener_that_the_override_adds_is_a_listener(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    listener = "{name: mine, address: {socket_address: {address: 0.0.0.0, port_value: 15002}}}"
    file.write_text(f"static_resources: {{listeners: [{listener}]}}", encoding="utf-8")
    agreed(check("--interception", "-p 15002 -u 1337", "--bootstrap-override", str(file)))
    assert "15003" in refused(check("--interception", "-p 15003 -u 1337", "--bootstrap-override", str(file)))


def test_a_listener_of_a_custom_file_is_a_listener(tmp_path: Path) -> None:
    file = tmp_path / "custom.json"
    address = {"socket_address": {"address": "10.1.1.1", "port_value": 15002}}
    custom = {"static_resources": {"listeners": [{"address": address}]}}
    file.write_text(json.dumps(custom, indent="\t"), encoding="utf-8")
    assert agreed(check("--interception", "-p 15002 -u 1337", "--customConfigFile", str(file))) == custom
    file.write_text("a: [", encoding="utf-8")
    assert "--customConfigFile" in refused(check("--interception", "-u 1337", "--customConfigFile", str(file)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--frobnicate", ["--frobnicate", "apply --help"]),
        ("-p 0", ["-p/--envoy-port", "'0'", "1..65535"]),
        ("-p", ["-p", "no value was given"]),
        ("-b -d ''", ["-b/--istio-inbound-ports", "'-d'"]),
        ("-u no-such-user", ["-u/--proxy-uid", "'no-such-user'"]),
        ("-b 80 81", ["81"]),
        ("-b '80", ["No closing quotation"]),
        ("--help", ["--help"]),
    ],
)
def test_bad_flags_of_the_interception_are_refused_by_name(flags: str, words: list[str]) -> None:
    line = refused(check("--interception", flags))
    assert line.startswith("istio-init: error: --interception: ")
    assert [word for word in words if word not in line] == []


TODAYS_RULES = "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020"


def test_todays_command_is_read_with_its_own_flags_and_defaults() -> None:
    agreed(check("--interception", TODAYS_RULES))
    done = check("--interception", "istio-iptables -u 1337 --redirect-dns -c eth1 --log_output_level=default:info -q 80")
    assert agreed(done)
    assert "inbound port 15006" in done.stderr  # of which nothing was said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("istio-iptables -z 15007 -u 1337", ["-z is 15007", "15001 or 15006"]),
        ("istio-iptables -u 5", ["-u is 5", "uid 1337"]),
        ("istio-iptables --no-such-flag", ["--interception: ", "--no-such-flag", "istio-iptables --help"]),
        ("istio-iptables --layout istio-1.0 -q 80", ["--interception: -q/--istio-outbound-ports", "layout istio-1.30"]),
        ("istio-iptables -o x", ["--interception: -o/--istio-local-outbound-ports-exclude", "'x'"]),
        ("istio-iptables --dry-run=maybe", ["--interception: ", "--dry-run", "'maybe'"]),
        ("istio-iptables --redirect-dns 80", ["--interception: ", "80"]),
    ],
)
def test_what_is_wrong_with_todays_command_is_told(flags: str, words: list[str]) -> None:
    line = refused(check("--interception", flags))
    assert [word for word in words if word not in line] == []


def test_variables_of_todays_init_container_count(tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    plain = manifest(tmp_path, '"istio-iptables", "-u", "1337"')
    env = "    env: [{name: INBOUND_CAPTURE_PORT, value: '15007'}, {name: ISTIO_OUTBOUND_OWNER_GROUPS, value: x}]\n"
    agreed(check("--manifest", plain))
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("  containers:\n", f"{env}  containers:\n", 1), encoding="utf-8")
    assert "$ISTIO_OUTBOUND_OWNER_GROUPS" in refused(check("--manifest", str(file)))
    file.write_text(file.read_text(encoding="utf-8").replace("value: x", "value: '5'"), encoding="utf-8")
    assert "-z is 15007" in refused(check("--manifest", str(file)))


def test_a_user_without_rules_is_refused() -> None:
    assert "--run-as-uid" in refused(check("--run-as-uid", "5"))


def test_rules_come_from_one_place(tmp_path: Path) -> None:
    line = refused(check("--manifest", manifest(tmp_path), "--interception", POD_RULES))
    assert "--manifest" in line
    assert "--interception" in line


def test_a_manifest_gives_both_halves(tmp_path: Path) -> None:
    node = agreed(call("bootstrap", "--manifest", manifest(tmp_path), environment=POD_ENVIRONMENT))["node"]
    assert node["cluster"] == "productpage"
    assert node["id"].startswith("sidecar~192.0.2.1~")
    assert node["metadata"] == {"INTERCEPTION_MODE": "REDIRECT", "istio": "sidecar"}


def test_what_is_given_beside_a_manifest_wins(tmp_path: Path) -> None:
    words = ("router", "--manifest", manifest(tmp_path), "--serviceCluster", "mine", "--ip", "10.2.2.2")
    node = agreed(call("bootstrap", *words))["node"]
    assert node["cluster"] == "mine"
    assert node["id"].startswith("router~10.2.2.2~")


def test_contradictions_of_a_manifest_are_told(tmp_path: Path) -> None:
    file = manifest(tmp_path, '"-u", "1337", "-m", "TPROXY", "-p", "15002"', port=15090, user=1000)
    done = check("--manifest", file)
    assert (done.returncode, done.stdout) == (2, "")
    starts = [" ".join(line.split()[2:4]) for line in done.stderr.splitlines()]
    assert starts == ["-p is", "-u is", "-m is", "containerPort 15090"]


BAD_MANIFESTS = {
    "no YAML": ("a: [", "YAML"),
    "no pod": ("{kind: Service, spec: {ports: []}}", "no pod"),
    "no init container": ("{spec: {containers: [{name: istio-proxy, args: [proxy]}]}}", "init container istio-init"),
    "no proxy": ("{spec: {initContainers: [{name: istio-init}], containers: []}}", "container istio-proxy"),
    "bad rules": (MANIFEST % ('"-p", "0"', 9080, 1337), "istio-init: -p/--envoy-port"),
    "unknown rules": (MANIFEST % ("--frob", 9080, 1337), "istio-init: --frob: there is no such flag"),
    "unknown flag of the proxy": (
        (MANIFEST % ("", 80, 1)).replace("--serviceCluster", "--frob"),
        "istio-proxy: --frob: there is no such flag",
    ),
}


@pytest.mark.parametrize(("text", "problem"), BAD_MANIFESTS.values(), ids=list(BAD_MANIFESTS))
def test_a_bad_manifest_is_refused_by_name(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(text, encoding="utf-8")
    line = refused(check("--manifest", str(file)))
    assert line.startswith(f"istio-init: error: --manifest {file}: ")
    assert problem in line


def test_a_manifest_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        line = refused(check("--manifest", str(path)))
        assert "--manifest" in line
        assert str(path) in line


def test_the_help_tells_of_the_check() -> None:
    shown = call("bootstrap", "--help").stdout
    assert [
        word for word in ("--interception FLAGS", "--manifest FILE", "--run-as-uid UID", "192.0.2.1") if word not in shown
    ] == []


@pytest.mark.parametrize("variable", ["ISTIO_CLUSTER_CONFIG", "ISTIO_SIDECAR_CONFIG"])
def test_files_that_variables_of_a_pod_name_are_not_looked_for_on_this_machine(variable: str, tmp_path: Path) -> None:
    """They are the pod's; here the same name may stand for a secret, which an error would show."""
    file = tmp_path / "here.env"
    file.write_text("ENVOY_PORT=15000\na secret\n", encoding="utf-8")
    found = read_rules(["-u", "1337"], {variable: str(file)}, "init container istio-init")
    assert found == read_rules(["-u", "1337"], {}, "init container istio-init")
    manifest = tmp_path / "pod.yaml"
    env = f"    env: [{{name: {variable}, value: {file}}}]\n"
    text = MANIFEST % ("-p, '15001', -u, '1337', -b, '9080'", 9080, 1337)
    manifest.write_text(text.replace("  containers:\n", f"{env}  containers:\n"), encoding="utf-8")
    assert check("--manifest", str(manifest)).returncode == 0
