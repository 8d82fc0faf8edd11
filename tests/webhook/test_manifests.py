"""The webhook's manifests: valid, of least privilege, and in agreement with the program and with each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from base64 import b64decode
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.netns.namespaces import Namespace
from tests.privileges import need_namespaces
from tests.schemas import LATEST, validate
from tests.sweeps import sweep
from tests.unit.program import command
from tests.webhook.live import MAKE_CERTIFICATES, ROOT, Certificates, eventually
from tests.webhook.reviews import POD, encoded, patched, review

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = MAKE_CERTIFICATES.parent
FILES = sorted(file.name for file in DIRECTORY.glob("*.yaml") if file.name != "kustomization.yaml")
VERSIONS = ("1.30", "1.34", LATEST)
NAME, NAMESPACE = "istio-init-webhook", "istio-init"
HOST = f"{NAME}.{NAMESPACE}.svc"


def read(name: str) -> Any:
    return yaml.safe_load((DIRECTORY / name).read_text(encoding="utf-8"))


KUSTOMIZATION = read("kustomization.yaml")
DEPLOYMENT = read("deployment.yaml")
POD_SPEC = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD_SPEC["containers"]
WEBHOOKS = read("webhook-configuration.yaml")["webhooks"]


@sweep("version", VERSIONS)
@sweep("name", FILES)
def test_each_manifest_is_valid(name: str, version: str) -> None:
    validate(read(name), version)


def test_the_kustomization_has_every_file() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == FILES


# Least privilege.


def test_the_pod_has_no_privileges() -> None:
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD_SPEC["securityContext"]["runAsNonRoot"] is True
    assert POD_SPEC["securityContext"]["runAsUser"] > 0
    assert POD_SPEC["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD_SPEC["automountServiceAccountToken"] is read("service-account.yaml")["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD_SPEC)


def test_the_authoritys_key_is_not_in_the_cluster() -> None:
    (secret,) = KUSTOMIZATION["secretGenerator"]
    assert sorted(secret["files"]) == ["certificates/ca.crt", "certificates/tls.crt", "certificates/tls.key"]


# Agreement.


def test_one_replica_may_go_while_the_other_answers() -> None:
    assert DEPLOYMENT["spec"]["replicas"] == 2
    assert read("disruption-budget.yaml")["spec"]["minAvailable"] == 1
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        read("disruption-budget.yaml")["spec"]["selector"]["matchLabels"],
        read("service.yaml")["spec"]["selector"],
        POD_SPEC["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels


def test_the_api_server_reaches_the_container() -> None:
    (port,) = read("service.yaml")["spec"]["ports"]
    for webhook in WEBHOOKS:
        assert webhook["clientConfig"]["service"] == {
            "name": NAME,
            "namespace": NAMESPACE,
            "path": "/inject",
            "port": port["port"],
        }
    assert port["targetPort"] in [one["name"] for one in CONTAINER["ports"]]
    assert read("namespace.yaml")["metadata"]["name"] == KUSTOMIZATION["namespace"] == NAMESPACE


def test_the_pod_outlives_its_requests() -> None:
    from istio_init.kubernetes.webhook.server import CLOSE_TIMEOUT, DRAIN_TIMEOUT

    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + DRAIN_TIMEOUT + CLOSE_TIMEOUT < POD_SPEC["terminationGracePeriodSeconds"]
    assert max(webhook["timeoutSeconds"] for webhook in WEBHOOKS) < DRAIN_TIMEOUT


# Which pods are asked about.


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Decide as Kubernetes does (labels and selectors, set-based requirements)."""

    def holds(key: str, operator: str, values: tuple[str, ...] = ()) -> bool:
        match operator:
            case "In":
                return labels.get(key) in values
            case "NotIn":
                return labels.get(key) not in values
            case "DoesNotExist":
                return key not in labels
            case _:
                raise NotImplementedError(operator)

    return all(holds(**requirement) for requirement in selector["matchExpressions"])


@pytest.mark.parametrize(
    ("namespace", "pod", "asked"),
    [
        ({}, {}, None),
        ({}, {"sidecar.istio.io/inject": "true"}, "object"),
        ({}, {"sidecar.istio.io/inject": "false"}, None),
        ({"istio-injection": "enabled"}, {}, "namespace"),
        ({"istio-injection": "enabled"}, {"sidecar.istio.io/inject": "true"}, "namespace"),
        ({"istio-injection": "enabled"}, {"sidecar.istio.io/inject": "false"}, None),
        ({"istio-injection": "disabled"}, {}, None),
        ({"istio-injection": "disabled"}, {"sidecar.istio.io/inject": "true"}, None),
        ({"istio.io/rev": "canary"}, {"sidecar.istio.io/inject": "true"}, None),
        ({"kubernetes.io/metadata.name": "kube-system"}, {"sidecar.istio.io/inject": "true"}, None),
        ({"kubernetes.io/metadata.name": "istio-init", "istio-injection": "enabled"}, {}, None),
    ],
)
def test_labels_select_as_istios_do(namespace: dict[str, str], pod: dict[str, str], asked: str | None) -> None:
    found = [
        webhook["name"].partition(".")[0]
        for webhook in WEBHOOKS
        if selects(webhook["namespaceSelector"], namespace) and selects(webhook["objectSelector"], pod)
    ]
    assert found == ([asked] if asked else [])


def test_both_webhooks_ask_about_new_pods_and_fail_closed() -> None:
    for webhook in WEBHOOKS:
        (rule,) = webhook["rules"]
        assert (rule["operations"], rule["apiGroups"], rule["resources"]) == (["CREATE"], [""], ["pods"])
        assert (webhook["failurePolicy"], webhook["sideEffects"], webhook["admissionReviewVersions"]) == (
            "Fail",
            "None",
            ["v1"],
        )


@pytest.mark.parametrize(("flags", "status"), [(("--help",), 0), (("--name",), 2), (("--nam", "x"), 2)])
def test_the_script_of_certificates_says_how_it_is_called_and_makes_nothing(
    tmp_path: Path, flags: tuple[str, ...], status: int
) -> None:
    script = shutil.copy(MAKE_CERTIFICATES, tmp_path)
    done = subprocess.run([script, *flags], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert "--name NAME" in (done.stderr if status else done.stdout)
    assert [file.name for file in tmp_path.iterdir()] == ["make-certificates"]


# What kubectl makes of them.


def test_kubectl_fills_in_the_secret_and_the_authority(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl, which is not part of Debian in a version that knows `replacements`")
    copied = tmp_path / "webhook"
    shutil.copytree(DIRECTORY, copied, ignore=shutil.ignore_patterns("certificates"))
    subprocess.run([copied / "make-certificates"], check=True, timeout=60)
    done = subprocess.run(["kubectl", "kustomize", copied], check=True, capture_output=True, text=True, timeout=60)
    documents = {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}
    for document in documents.values():
        validate(document, VERSIONS[0])
    certificates = {name: (copied / "certificates" / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key")}
    secret = {name: b64decode(text) for name, text in documents["Secret"]["data"].items()}
    assert secret == certificates
    bundles = [b64decode(one["clientConfig"]["caBundle"]) for one in documents["MutatingWebhookConfiguration"]["webhooks"]]
    assert bundles == [certificates["ca.crt"]] * 2
    (volume,) = documents["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert volume["secret"]["secretName"] == documents["Secret"]["metadata"]["name"]


# As the Deployment starts it.


@pytest.fixture
def mount() -> Iterator[Path]:
    """Give a directory that the pod's user may read, filled as the Secret's volume is."""
    need_namespaces()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        certificates = Certificates.make(directory / "made")
        certificates.directory.chmod(0o755)
        user = POD_SPEC["securityContext"]["runAsUser"]
        (directory / "mount").mkdir()
        for item in POD_SPEC["volumes"][0]["secret"]["items"]:
            file = directory / "mount" / item["path"]
            shutil.copy(certificates.directory / item["key"], file)
            os.chown(file, user, user)
        (certificates.directory / "ca.crt").chmod(0o644)
        yield directory


def succeeds(namespace: Namespace, argv: tuple[str, ...]) -> bool:
    return namespace.run(*argv, check=False).returncode == 0


def test_the_deployments_command_serves_as_its_user_without_any_privilege(mount: Path) -> None:
    """Its arguments, ports, probes and host name are as written; only the volume is elsewhere."""
    (volume,) = CONTAINER["volumeMounts"]
    arguments = [word.replace(volume["mountPath"], str(mount / "mount")) for word in CONTAINER["args"]]
    context = POD_SPEC["securityContext"]
    as_user = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--clear-groups"]
    without = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    namespace = Namespace()
    namespace.run("ip", "link", "set", "lo", "up")
    enter = ["nsenter", f"--net={namespace.path}", "setpriv", *as_user, *without]
    try:
        with subprocess.Popen([*enter, *command(*arguments)], stderr=subprocess.PIPE, cwd=ROOT) as process:
            try:
                for probe in ("readinessProbe", "livenessProbe"):
                    asked = CONTAINER[probe]["httpGet"]
                    curl = ("curl", "-fsS", f"http://127.0.0.1:{ports[asked['port']]}{asked['path']}")
                    eventually(partial(succeeds, namespace, curl), f"{curl[-1]} answers")
                annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
                scraped = f"http://127.0.0.1:{annotations['prometheus.io/port']}{annotations['prometheus.io/path']}"
                assert "istio_init_webhook_reviews_total" in namespace.run("curl", "-fsS", scraped).stdout
                done = namespace.run(
                    *("curl", "-sS", "--fail-with-body", "--cacert", str(mount / "made" / "ca.crt"), "--data-binary", "@-"),
                    *("--resolve", f"{HOST}:{ports['https']}:127.0.0.1", "-H", "Content-Type: application/json"),
                    f"https://{HOST}:{ports['https']}{WEBHOOKS[0]['clientConfig']['service']['path']}",
                    stdin=encoded(review(POD)).decode(),
                )
                names = [one["name"] for one in patched(POD, json.loads(done.stdout))["spec"]["containers"]]
                assert names == ["productpage", "istio-proxy"]
            finally:
                process.terminate()
            assert process.wait(20) == 0
    finally:
        namespace.close()
