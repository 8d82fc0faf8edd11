"""The real Envoy reads what we render."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from istio_init.sidecar.bootstrap import render_bootstrap
from istio_init.sidecar.bootstrap.common import CERTIFICATES
from tests.privileges import give_up
from tests.proxies import COMBINATIONS, PROXIES

ENVOY = Path(sys.executable).with_name("envoy")
BATCH = 16


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate, for Envoy reads the files that a bootstrap names."""
    if not ENVOY.exists():
        give_up("the real Envoy (extra `lab`) is not installed")
    directory = tmp_path_factory.mktemp("certs")
    chain, key = directory / "cert-chain.pem", directory / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    (directory / "root-cert.pem").write_bytes(chain.read_bytes())
    return directory


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ENVOY), "--mode", "validate", "--log-level", "error", "-c", str(file)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("first", range(0, len(COMBINATIONS), BATCH))
def test_every_combination_of_options_is_valid_to_envoy(first: int, certificates: Path, tmp_path: Path) -> None:
    for proxy in COMBINATIONS[first : first + BATCH]:
        file = tmp_path / "envoy.json"
        file.write_text(render_bootstrap(proxy.settings()).replace(CERTIFICATES, str(certificates)), encoding="utf-8")
        checked = validate(file)
        assert checked.returncode == 0, f"{proxy.name}: {checked.stderr}"


def test_a_file_that_envoy_does_not_read_is_found(certificates: Path, tmp_path: Path) -> None:
    assert certificates.is_dir()
    file = tmp_path / "envoy.json"
    file.write_text(render_bootstrap(PROXIES[0].settings(), "v2"), encoding="utf-8")
    assert validate(file).returncode != 0, "an Envoy that takes v2 checks nothing"


def run_bootstrap(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "istio_init", "bootstrap", "--ip", "10.1.1.1", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": path}, timeout=60)


def with_envoy() -> str:
    return f"{ENVOY.parent}:{os.environ['PATH']}"


@pytest.mark.usefixtures("certificates")
def test_check_passes_what_envoy_reads() -> None:
    done = run_bootstrap("--check", path=with_envoy())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{")


@pytest.mark.usefixtures("certificates")
def test_check_refuses_what_envoy_does_not_read_and_writes_nothing(tmp_path: Path) -> None:
    override = tmp_path / "mine.yaml"
    override.write_text("admin: {no_such_field: 1}\n", encoding="utf-8")
    output = tmp_path / "envoy.json"
    done = run_bootstrap("--check", "--bootstrap-override", str(override), "-o", str(output), path=with_envoy())
    assert done.returncode == 4
    assert "no_such_field" in done.stderr
    assert not output.exists()


def test_check_without_an_envoy_says_that_nothing_was_checked(tmp_path: Path) -> None:
    done = run_bootstrap("--check", path=str(tmp_path))
    assert done.returncode == 0
    assert "not validated" in done.stderr
