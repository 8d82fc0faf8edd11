"""Writes an image's SBOM (CycloneDX, JSON) from the metadata of dpkg and of Python packages."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from platform import freedesktop_os_release
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_sbom(file: Path, name: str, packages: list[str], venv: Path) -> None:
    """Write the SBOM of an image.

    Args:
        file: the output file.
        name: the name of the image.
        packages: the Debian packages.
        venv: the virtual environment with the Python packages.
    """
    parts = [*_debian(packages), *_python(venv)]
    version = next(part.version for part in parts if part.name == "istio-init")
    bom = Bom(components=parts)
    # Reproducible: a fixed timestamp, and a serial number derived from the components.
    bom.metadata.timestamp = datetime.fromtimestamp(0, UTC)
    bom.metadata.component = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref=f"image:{name}")
    bom.serial_number = uuid5(NAMESPACE_URL, "\n".join([name, *(str(part.purl) for part in parts)]))
    file.write_text(JsonV1Dot5(bom).output_as_string(indent=1), encoding="utf-8")


def _debian(packages: list[str]) -> Iterator[Component]:
    distro = "{ID}-{VERSION_ID}".format_map(freedesktop_os_release())
    form = "${Package}\t${Version}\t${Architecture}\t${source:Package}\n"
    argv = ["dpkg-query", "-W", "-f", form, *packages]
    for line in subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines():
        name, version, architecture, source = line.split("\t")
        qualifiers = {"arch": architecture, "upstream": source, "distro": distro}
        yield _component(PackageURL("deb", "debian", name, version, qualifiers))


def _python(venv: Path) -> Iterator[Component]:
    (site_packages,) = venv.glob("lib/python*/site-packages")
    for one in sorted(distributions(path=[str(site_packages)]), key=lambda one: one.name.lower()):
        url = PackageURL("pypi", None, one.name.lower().replace("_", "-"), one.version)
        yield _component(url, one.metadata.get("License-Expression") or one.metadata.get("License", ""))


def _component(url: PackageURL, licence: str = "") -> Component:
    """Build a component; for the licences of Debian packages, see their files in /usr/share/doc.

    Args:
        url: the package URL.
        licence: the licence from the metadata, which may be the full text, starting with the licence's name.
    """
    name = licence.strip().partition("\n")[0]
    return Component(
        name=url.name,
        version=url.version,
        purl=url,
        bom_ref=str(url),
        type=ComponentType.LIBRARY,
        licenses=[LicenseFactory().make_from_string(name)] if name else [],
    )
