"""`istio-init inject --webhook` as a process: it injects what `istio-init inject` does."""

from __future__ import annotations

import copy
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.schemas import validate
from tests.unit.program import call, command, refused
from tests.webhook.live import ADDRESS, Certificates, Webhook, webhook_arguments
from tests.webhook.reviews import POD, bare_pod, patched, pod, review

if TYPE_CHECKING:
    from pathlib import Path

    from tests.webhook.reviews import Json

NAMESPACE = "bookinfo"
WAYS = {
    "istio-1.0": (),
    "unprivileged": ("--unprivileged", "--init-image", "registry/init:1", "--proxy-image", "registry/proxy:1"),
    "current": ("--layout", "current"),
    "native": ("--layout", "current", "--native-sidecar", "--discoveryAddress", "istiod.mesh:15010"),
}
ANNOTATIONS = {
    "sidecar.istio.io/interceptionMode": "TPROXY",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges": "169.254.169.254/32",
    "traffic.sidecar.istio.io/includeInboundPorts": "9080,9081",
}


def named_pod(annotations: dict[str, str]) -> Json:
    made = bare_pod("productpage")
    made["metadata"].update(namespace=NAMESPACE, annotations=annotations)
    return made


def by_command(pod: Json, *flags: str) -> Json:
    line = command("inject", *flags, "-f", "-")
    done = subprocess.run(line, input=json.dumps(pod), check=True, capture_output=True, text=True, timeout=60)
    found: Json = yaml.safe_load(done.stdout)
    return found


@pytest.mark.parametrize("flags", WAYS.values(), ids=list(WAYS))
def test_the_patched_pod_is_that_of_the_command(flags: tuple[str, ...], certificates: Certificates) -> None:
    with Webhook.start(certificates, command(*webhook_arguments(certificates), *flags)) as webhook:
        for annotations in ({}, ANNOTATIONS):
            asked = named_pod(annotations)
            injected = patched(asked, webhook.review(review(asked, namespace=NAMESPACE)))
            assert injected == by_command(asked, *flags) != asked
            for version in ("1.30", "1.34"):
                validate(injected, version)


def test_a_pod_of_a_deployment_gets_both_containers(webhook: Webhook) -> None:
    injected = patched(POD, webhook.review(review(POD)))
    assert [one["name"] for one in injected["spec"]["initContainers"]] == ["istio-init"]
    assert [one["name"] for one in injected["spec"]["containers"]] == ["productpage", "istio-proxy"]
    assert "pod bookinfo/productpage-v1-6b746f74dc-*: injected (layout istio-1.0, namespace bookinfo)" in webhook.log()


def test_an_injected_pod_is_left_alone(webhook: Webhook) -> None:
    injected = patched(POD, webhook.review(review(POD)))
    again = webhook.review(review(injected))["response"]
    assert again["allowed"] is True
    assert "patch" not in again
    assert "already injected" in again["warnings"][0]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("traffic.sidecar.istio.io/excludeInboundPorts", "9080,http", "1..65535"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/33", "10.0.0.0/8"),
        ("sidecar.istio.io/interceptionMode", "MAGIC", "REDIRECT or TPROXY"),
        ("sidecar.istio.io/inject", "maybe", "true"),
    ],
)
def test_an_invalid_annotation_denies_the_pod(name: str, value: str, allowed: str, webhook: Webhook) -> None:
    asked = copy.deepcopy(POD)
    asked["metadata"]["annotations"] = {name: value}
    response = webhook.review(review(asked))["response"]
    assert (response["allowed"], response["status"]["code"]) == (False, 422)
    assert "patch" not in response
    message = response["status"]["message"]
    assert name in message
    assert value.rpartition(",")[2] in message
    assert allowed in message.partition("(allowed: ")[2]


def test_a_pod_that_says_no_is_left_alone_with_a_warning(webhook: Webhook) -> None:
    response = webhook.review(review(pod(sidecar_istio_io__inject="false")))["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    assert "sidecar.istio.io/inject" in response["warnings"][0]


# How it starts.


def test_it_says_where_it_serves_and_that_it_ends(certificates: Certificates) -> None:
    with Webhook.start(certificates) as webhook:
        (first,) = webhook.log().splitlines()
        assert first == (
            f"istio-init: serving https://{ADDRESS}:{webhook.port}/inject, "
            f"and http://{ADDRESS}:{webhook.status_port} with /healthz/ready and /metrics"
        )
        webhook.process.terminate()
        assert webhook.process.wait(20) == 0
        assert [line.split()[1] for line in webhook.log().splitlines()] == ["serving", "stopping:"], webhook.log()


def test_without_an_address_it_serves_every_family(certificates: Certificates) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        port = taken.getsockname()[1]
    arguments = list(webhook_arguments(certificates))
    arguments[arguments.index("--webhook-address") + 1] = ""
    arguments[arguments.index("--webhook-status-port") + 1] = str(port)
    # The ports of two sockets are free choices of their own, so this one is chosen.
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            assert f"http://*:{port} " in process.stderr.readline()
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, port), 20).close()
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_bad_options_are_refused_in_one_line(certificates: Certificates, tmp_path: Path) -> None:
    cert, key = str(certificates.certificate), str(certificates.key)
    files = ("--tls-cert", cert, "--tls-key", key)
    other = Certificates.make(tmp_path / "other")
    (tmp_path / "pod.json").write_text(json.dumps(POD), encoding="utf-8")
    with socket.create_server((ADDRESS, 0)) as taken:
        port = str(taken.getsockname()[1])
        bad = {
            "--webhook: API servers require HTTPS": ("--webhook", "--tls-cert", cert),
            "--tls-key: applies only with --webhook": ("--tls-key", key, "-f", "-"),
            "--webhook: does not read or write manifests": ("--webhook", *files, "-f", str(tmp_path / "pod.json")),
            "KEY_VALUES_MISMATCH": ("--webhook", "--tls-cert", cert, "--tls-key", str(other.key)),
            "/nowhere": ("--webhook", "--tls-cert", cert, "--tls-key", "/nowhere"),
            "--webhook-port": ("--webhook", *files, "--webhook-port", "65536"),
            "--webhook-port: applies only with --webhook": ("--webhook-port", "5", "-f", "-"),
            "--webhook-address: '1.2.3.4.5' is not an IP address": ("--webhook", *files, "--webhook-address", "1.2.3.4.5"),
            f"--webhook-port: cannot listen on {ADDRESS}:{port}": (
                *("--webhook", *files, "--webhook-address", ADDRESS),
                *("--webhook-status-port", "0", "--webhook-port", port),
            ),
            f"--webhook-status-port: cannot listen on {ADDRESS}:{port}": (
                *("--webhook", *files, "--webhook-address", ADDRESS),
                *("--webhook-status-port", port, "--webhook-port", "0"),
            ),
        }
        for message, flags in bad.items():
            assert message in refused(call("inject", *flags))


def test_a_missing_library_is_named(certificates: Certificates) -> None:
    program = (
        "import sys; sys.modules['aiohttp'] = None; from istio_init.cli.main import run; "
        f"sys.exit(run({list(webhook_arguments(certificates))}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr == "istio-init: error: --webhook needs the module aiohttp: install istio-init[webhook]\n"


def test_injecting_a_manifest_does_not_import_the_server(tmp_path: Path) -> None:
    file = tmp_path / "pod.json"
    file.write_text(json.dumps(named_pod({})), encoding="utf-8")
    program = (
        f"import sys; from istio_init.cli.main import run; assert run(['inject', '-f', {str(file)!r}]) == 0; "
        "print(*{'aiohttp', 'asyncio', 'prometheus_client', 'ssl'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == ""


def test_the_help_names_every_option() -> None:
    shown = call("inject", "--help").stdout
    for flag in ("--webhook ", "--tls-cert", "--tls-key", "--webhook-address", "--webhook-port", "--webhook-status-port"):
        assert flag in shown
