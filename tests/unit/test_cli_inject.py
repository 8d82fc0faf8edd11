"""`istio-init inject` and `uninject`, as users call them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from istio_init.kubernetes.inject.settings import INJECT, PROXY_IMAGE_ANNOTATION, STATUS_PORT, TRAFFIC
from tests.schemas import validate
from tests.unit.inject_pods import template
from tests.unit.program import call, command, refused
from tests.unit.test_inject_template import document

ROOT = Path(__file__).parents[2]
BASE = ROOT / "docker" / "kubernetes"
DEPLOYMENT = yaml.safe_dump(document("Deployment", template()))
SERVICE = "kind: Service\nmetadata: {name: s}\n"
BROKEN = yaml.safe_dump(document("Pod", template({"sidecar.istio.io/interceptionMode": "SIDEWAYS"})))


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(DEPLOYMENT, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(document("Job", template())), encoding="utf-8")
    (tmp_path / "c.yml").write_text(SERVICE, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no manifest", encoding="utf-8")
    return tmp_path


def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), input=text, check=False, capture_output=True, text=True, timeout=60)


def test_a_file_goes_to_standard_output_and_the_note_to_standard_error(manifests: Path) -> None:
    file = manifests / "a.yaml"
    done = call("inject", "-f", str(file))
    assert done.returncode == 0
    assert done.stderr == f"istio-init: {file}: Deployment 'productpage': injected (layout istio-1.0, namespace shop)\n"
    assert [one["name"] for one in yaml.safe_load(done.stdout)["spec"]["template"]["spec"]["initContainers"]] == [
        "istio-init"
    ]
    assert file.read_text(encoding="utf-8") == DEPLOYMENT


def test_standard_input_goes_there_and_back() -> None:
    made = piped(DEPLOYMENT, "inject", "-f", "-", "--layout", "current", "--native-sidecar")
    assert "standard input: Deployment 'productpage': injected" in made.stderr
    back = piped(made.stdout, "uninject", "-")
    assert (back.returncode, back.stdout) == (0, DEPLOYMENT)


def test_windows_line_breaks_go_through(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    plain = DEPLOYMENT.replace("\n", "\r\n").encode()
    file.write_bytes(plain)
    assert call("inject", "--in-place", str(file)).returncode == 0
    made = file.read_bytes()
    assert made.count(b"\n") == made.count(b"\r\n") > plain.count(b"\n")
    assert call("uninject", "--in-place", str(file)).returncode == 0
    assert file.read_bytes() == plain


def test_a_directory_becomes_one_stream_of_its_manifests(manifests: Path) -> None:
    done = call("inject", str(manifests))
    assert [one["kind"] for one in yaml.safe_load_all(done.stdout)] == ["Deployment", "Job", "Service"]
    assert "notes.txt" not in done.stderr
    assert f"{manifests / 'c.yml'}: no pods found" in done.stderr


def test_in_place_changes_what_has_pods_and_keeps_its_mode(manifests: Path) -> None:
    (manifests / "a.yaml").chmod(0o600)
    untouched = (manifests / "c.yml").stat().st_mtime_ns
    done = call("inject", "--in-place", "-q", "-f", str(manifests / "a.yaml"), "-f", str(manifests))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (manifests / "a.yaml").stat().st_mode & 0o777 == 0o600
    assert (manifests / "c.yml").stat().st_mtime_ns == untouched
    assert json.loads((manifests / "b.json").read_text(encoding="utf-8"))["spec"]["template"]["spec"]["initContainers"]
    assert call("uninject", "--in-place", str(manifests)).returncode == 0
    assert (manifests / "a.yaml").read_text(encoding="utf-8") == DEPLOYMENT


def test_output_goes_to_a_file(manifests: Path) -> None:
    output = manifests / "out.txt"
    done = call("inject", str(manifests / "a.yaml"), "-o", str(output))
    assert (done.returncode, done.stdout) == (0, "")
    assert output.read_text(encoding="utf-8") == call("inject", str(manifests / "a.yaml")).stdout


def test_images_and_addresses_come_by_option(manifests: Path) -> None:
    words = ("--init-image", "r/init:1", "--proxy-image", "r/proxy:1", "--discoveryAddress", "p:1", "--unprivileged")
    spec = yaml.safe_load(call("inject", str(manifests / "a.yaml"), *words, "--zipkinAddress", "").stdout)["spec"][
        "template"
    ]["spec"]
    assert spec["initContainers"][0]["image"] == "r/init:1"
    assert spec["initContainers"][0]["securityContext"]["privileged"] is False
    assert spec["containers"][1]["image"] == "r/proxy:1"
    assert "p:1" in spec["containers"][1]["args"]
    assert "--zipkinAddress" not in spec["containers"][1]["args"]


def test_one_bad_manifest_keeps_all_from_being_written(manifests: Path) -> None:
    (manifests / "z.yaml").write_text(f"{SERVICE}---\n{BROKEN}", encoding="utf-8")
    line = refused(call("inject", "--in-place", str(manifests)))
    assert f"{manifests / 'z.yaml'}: document 2: annotation sidecar.istio.io/interceptionMode: 'SIDEWAYS'" in line
    assert "TPROXY" in line
    assert (manifests / "a.yaml").read_text(encoding="utf-8") == DEPLOYMENT


def test_an_injected_manifest_agrees_with_itself(manifests: Path) -> None:
    for words in ((), ("--layout", "current"), ("--layout", "current", "--native-sidecar")):
        output = str(manifests / "out")
        assert call("inject", str(manifests / "a.yaml"), "-o", output, *words).returncode == 0
        done = call("bootstrap", "--manifest", output, "-o", "/dev/null")
        assert done.returncode == 0, done.stderr
        assert "both halves agree" in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no manifest given"),
        (("no-such-file",), "no-such-file"),
        (("-", "--in-place"), "standard input cannot be updated in place"),
        (("x", "--in-place", "-o", "y"), "--in-place"),
        (("-", "--native-sidecar"), "--native-sidecar"),
        (("-", "--proxy-image", "a b"), "--proxy-image"),
        (("-", "--layout", "x"), "--layout"),
        (("-", "--init-image", "-q"), "--init-image"),
    ],
)
def test_bad_input_is_refused(words: tuple[str, ...], problem: str) -> None:
    assert problem in refused(call("inject", *words))


def test_a_standard_input_that_is_closed_is_told() -> None:
    closed = ("sh", "-c", 'exec "$@" <&-', "sh", *command("inject", "-"))
    done = subprocess.run(closed, check=False, capture_output=True, text=True, timeout=60)
    assert "standard input is closed" in refused(done)


def test_a_directory_without_manifests_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "no manifests in" in refused(call("inject", str(tmp_path)))
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    assert str(tmp_path / "a.yaml") in refused(call("uninject", str(tmp_path)))


def test_without_its_library_the_program_says_what_to_install(manifests: Path) -> None:
    program = (
        "import sys; sys.modules['ruamel'] = None; from istio_init.cli.main import run; "
        f"sys.exit(run(['inject', {str(manifests)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'istio-init[inject]'" in done.stderr


def test_the_help_names_every_annotation() -> None:
    shown = call("inject", "--help").stdout
    assert [name for name in (INJECT, *TRAFFIC, STATUS_PORT, PROXY_IMAGE_ANNOTATION) if name not in shown] == []


# docker/kubernetes


def test_the_injected_workload_of_the_base_is_what_the_command_writes() -> None:
    example = (BASE / "example.yaml").read_text(encoding="utf-8")
    ((words,),) = [re.findall(r"^#   istio-init (inject .*) -f docker", example, re.MULTILINE)]
    done = call(*words.split(), "-f", str(BASE / "example.yaml"))
    assert done.stdout == (BASE / "injected.yaml").read_text(encoding="utf-8")
    assert call("uninject", str(BASE / "injected.yaml")).stdout == example


def test_the_base_names_files_that_are_there_and_valid() -> None:
    base = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))
    assert {"namespace.yaml", "injected.yaml"} <= set(base["resources"])
    documents = [
        one
        for name in ("namespace.yaml", "injected.yaml")
        for one in yaml.safe_load_all((BASE / name).read_text(encoding="utf-8"))
    ]
    for one in documents:
        validate(one)
    assert [one["metadata"]["name"] for one in documents if one["kind"] == "Namespace"] == [base["namespace"]]


def test_the_workload_of_the_base_agrees_with_itself() -> None:
    done = call("bootstrap", "--manifest", str(BASE / "injected.yaml"), "-o", "/dev/null")
    assert "both halves agree" in done.stderr
