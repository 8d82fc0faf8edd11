"""The server's certificate, and how it changes while the server serves."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from istio_init.core.errors import InvalidInput
from istio_init.kubernetes.webhook.certificates import ServerCertificate
from tests.webhook.live import Certificates, Webhook, ask, eventually, stand_in_arguments
from tests.webhook.reviews import POD, encoded, patched, review

if TYPE_CHECKING:
    from pathlib import Path

LOADED = 'istio_init_webhook_certificate_loads_total{result="loaded"}'
REFUSED = 'istio_init_webhook_certificate_loads_total{result="refused"}'


def answers(webhook: Webhook) -> bool:
    return patched(POD, webhook.review(review(POD))) != POD


# Over HTTPS.


def test_a_new_certificate_is_in_use_without_a_restart(certificates: Certificates, stand_in: Webhook) -> None:
    former = certificates.fingerprint()
    assert stand_in.presented() == former
    Certificates.make(certificates.directory)
    assert certificates.fingerprint() != former
    eventually(lambda: stand_in.presented() == certificates.fingerprint(), "the new certificate is shown")
    assert answers(stand_in)
    assert stand_in.metric(LOADED) == 1
    assert "loaded a new certificate" in stand_in.log()


def test_connections_that_are_open_outlive_a_new_certificate(certificates: Certificates, stand_in: Webhook) -> None:
    connection = stand_in.connect()
    ask(connection, encoded(review(POD)))
    Certificates.make(certificates.directory)
    eventually(lambda: stand_in.metric(LOADED) == 1, "it is loaded")
    assert ask(connection, encoded(review(POD))).status == 200
    connection.close()


def test_a_change_of_the_authority_is_followed(certificates: Certificates, stand_in: Webhook) -> None:
    (certificates.directory / "ca.key").unlink()
    Certificates.make(certificates.directory)
    eventually(lambda: stand_in.metric(LOADED) == 1, "it is loaded")
    assert answers(stand_in._replace(trust=certificates.trust()))


def test_a_client_that_names_another_server_is_shown_the_new_one_too(certificates: Certificates, stand_in: Webhook) -> None:
    Certificates.make(certificates.directory)
    eventually(lambda: stand_in.metric(LOADED) == 1, "it is loaded")
    line = ["openssl", "s_client", "-connect", f"127.0.0.1:{stand_in.port}", "-showcerts"]
    for names in (["-noservername"], ["-servername", "somebody.else"], ["-tls1_2"], ["-tls1_3"]):
        shown = subprocess.run([*line, *names], input="", check=True, capture_output=True, text=True, timeout=60)
        assert certificates.certificate.read_text(encoding="ascii").strip() in shown.stdout


def publish(mount: Path, version: str, files: Certificates) -> None:
    """Fill a directory as the kubelet mounts a Secret: a version beside the others, and a link to it that is replaced."""
    directory = mount / f"..{version}"
    directory.mkdir(parents=True)
    for file in (files.certificate, files.key):
        shutil.copy(file, directory)
        if not (mount / file.name).is_symlink():
            (mount / file.name).symlink_to(f"..data/{file.name}")
    (mount / "..data_tmp").symlink_to(directory.name)
    (mount / "..data_tmp").rename(mount / "..data")


def test_a_secret_that_the_kubelet_swaps_is_noticed(certificates: Certificates, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    publish(mount, "first", certificates)
    with Webhook.start(certificates, stand_in_arguments(mount / "tls.crt", mount / "tls.key")) as webhook:
        assert webhook.presented() == certificates.fingerprint()
        Certificates.make(certificates.directory)
        publish(mount, "second", certificates)
        eventually(lambda: webhook.presented() == certificates.fingerprint(), "the new certificate is shown")


def test_a_certificate_and_a_key_in_two_directories_are_both_watched(certificates: Certificates, tmp_path: Path) -> None:
    others = (tmp_path / "public" / "server.pem", tmp_path / "private" / "server.key")
    for file in others:
        file.parent.mkdir()
    shutil.copy(certificates.certificate, others[0])
    shutil.copy(certificates.key, others[1])
    with Webhook.start(certificates, stand_in_arguments(*others)) as webhook:
        Certificates.make(certificates.directory)
        shutil.copy(certificates.certificate, others[0])
        # Now the certificate is not that of the key: the former pair stays, until the key has come.
        eventually(lambda: webhook.metric(REFUSED) == 1, "it is refused")
        assert webhook.presented() != certificates.fingerprint()
        shutil.copy(certificates.key, others[1])
        eventually(lambda: webhook.presented() == certificates.fingerprint(), "the new certificate is shown")


@pytest.mark.parametrize("fault", ["", "no certificate", None], ids=["empty", "broken", "removed"])
def test_with_a_bad_certificate_the_former_stays_in_use(
    fault: str | None, certificates: Certificates, stand_in: Webhook
) -> None:
    former = certificates.fingerprint()
    if fault is None:
        certificates.certificate.unlink()
    else:
        certificates.certificate.write_text(fault, encoding="ascii")
    eventually(lambda: stand_in.metric(REFUSED) >= 1, "it is refused")
    assert stand_in.presented() == former
    assert answers(stand_in)
    assert "the previous certificate stays in use: --tls-cert, --tls-key: " in stand_in.log()
    Certificates.make(certificates.directory)
    eventually(lambda: stand_in.presented() == certificates.fingerprint(), "the fixed certificate is presented")


# Without a network.


def test_the_same_contents_are_no_new_certificate(certificates: Certificates) -> None:
    loaded = ServerCertificate(str(certificates.certificate), str(certificates.key))
    certificates.certificate.touch()
    assert loaded.reload() is False
    Certificates.make(certificates.directory)
    assert loaded.reload() is True
    assert loaded.reload() is False


def test_a_certificate_that_was_refused_is_tried_again(certificates: Certificates) -> None:
    loaded = ServerCertificate(str(certificates.certificate), str(certificates.key))
    Certificates.make(certificates.directory)
    good = certificates.key.read_text(encoding="ascii")
    certificates.key.write_text("", encoding="ascii")
    for _ in range(2):
        with pytest.raises(InvalidInput):
            loaded.reload()
    certificates.key.write_text(good, encoding="ascii")
    assert loaded.reload() is True


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(certificates: Certificates) -> None:
    locked = certificates.directory / "locked.key"
    files = ("-in", str(certificates.key), "-out", str(locked))
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:secret", *files]
    subprocess.run(command, check=True, timeout=60)
    with pytest.raises(InvalidInput, match="unencrypted key"):
        ServerCertificate(str(certificates.certificate), str(locked))


def test_a_file_that_is_not_there_is_named(certificates: Certificates) -> None:
    with pytest.raises(InvalidInput, match="cannot read '/nowhere': No such file"):
        ServerCertificate(str(certificates.certificate), "/nowhere")


def test_a_fifo_which_openssl_would_wait_for_is_refused(certificates: Certificates) -> None:
    fifo = certificates.directory / "fifo.crt"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(certificates.certificate.read_bytes(),))
    writer.start()
    with pytest.raises(InvalidInput, match="is not a regular file"):
        ServerCertificate(str(fifo), str(certificates.key))
    writer.join()


# The script that makes them.


def test_the_script_keeps_the_authority_and_renews_the_certificate(certificates: Certificates) -> None:
    before = {file.name: file.read_bytes() for file in certificates.directory.iterdir()}
    assert set(before) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    Certificates.make(certificates.directory)
    after = {file.name: file.read_bytes() for file in certificates.directory.iterdir()}
    assert set(after) == set(before)
    assert {name for name in before if after[name] != before[name]} == {"tls.crt", "tls.key"}


def test_what_the_script_makes_is_strictly_right_and_for_nobody_elses_eyes(certificates: Certificates) -> None:
    service = "istio-init-webhook.istio-init.svc"
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", service]
    files = ["-CAfile", str(certificates.directory / "ca.crt"), str(certificates.certificate)]
    subprocess.run([*verify, *files], check=True, capture_output=True, timeout=60)
    assert {file.stat().st_mode & 0o077 for file in certificates.directory.iterdir()} == {0}


def test_the_script_says_what_went_wrong(certificates: Certificates) -> None:
    (certificates.directory / "ca.crt").write_text("broken", encoding="ascii")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        Certificates.make(certificates.directory)
    assert failed.value.stderr
    left = {file.name for file in certificates.directory.iterdir()}
    assert left == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
