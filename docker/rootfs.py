"""Assembles the root file system of an image from some Debian packages, their dependencies, and /opt/istio-init.

Runs in a build stage of the Dockerfile in which all of these are installed: `rootfs.py init /rootfs iptables ...`. As only
files are copied, this program replaces the packages' maintainer scripts: alternatives, accounts, compiled Python.
"""

from __future__ import annotations

import argparse
import compileall
import filecmp
import os
import re
import shutil
import subprocess
from pathlib import Path
from py_compile import PycInvalidationMode

from sbom import write_sbom
from start import write_start

VENV = Path("/opt/istio-init")
PYTHON = "/usr/bin/python3"
# Dependencies that are only needed by maintainer scripts.
LEFT_OUT = {"debconf", "dpkg", "mawk"}
# The programs to keep in the virtual environment.
PROGRAMS = re.compile(r"istio-init|python[\d.]*")
SHELL_SCRIPT = re.compile(rb"#! ?/(usr/)?bin/(env )?(ba|da)?sh\b")
# Licences are kept.
UNWANTED = re.compile(
    r"/usr/share/(doc/.*/(?!copyright)[^/]*$|man/|locale/|info/|lintian/|bug/|bash-completion/)"
    r"|/usr/lib/python3[.\d]*/(lib2to3|pydoc_data|ensurepip|idlelib|turtledemo|test)/|/(systemd|apport)/"
)
DIRECTORIES = {
    "dev": 0o755,
    "etc": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
}
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/usr/sbin/nologin\n"
        "istio-proxy:x:1337:1337::/:/usr/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": "root:x:0:\nistio-proxy:x:1337:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
# Not for legacy iptables, whose tables only root can list.
CAPABILITIES = {
    "usr/sbin/nft": "cap_net_admin+ep",
    "usr/sbin/xtables-nft-multi": "cap_net_admin+ep",
}
# A fixed timestamp for reproducible builds.
EPOCH = 0  # seconds


def query(*arguments: str) -> list[str]:
    """Query dpkg, and return the lines of its output."""
    return subprocess.run(["dpkg-query", *arguments], check=True, capture_output=True, text=True).stdout.splitlines()


def needed(wanted: list[str]) -> list[str]:
    """List packages with their installed dependencies."""
    providers: dict[str, str] = {}
    depends: dict[str, list[str]] = {}
    for line in query("-W", "-f", "${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n"):
        package, provides, text = line.split("\t")
        depends[package] = _names(text)
        providers.update(dict.fromkeys(_names(provides), package))
    found: list[str] = []
    waiting = [*wanted, "base-files"]
    while waiting:
        name = waiting.pop()
        package = name if name in depends else providers.get(name, "")
        if package and package not in found and package not in LEFT_OUT:
            found.append(package)
            waiting += depends[package]
    missing = [name for name in wanted if name not in found]
    if missing:
        message = f"not installed: {', '.join(missing)}"
        raise SystemExit(message)
    return sorted(found)


def _names(text: str) -> list[str]:
    """List the names in a package relationship field: `a (>= 1) | b:any, c`."""
    return re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", text)


def copy_package(package: str, root: Path) -> None:
    """Copy the files of a package, and its dpkg status."""
    for name in query("-L", package):
        source = Path(name)
        unwanted = UNWANTED.search(f"{name}/" if source.is_dir() else name) or _is_shell_script(source)
        if not unwanted and (source.is_symlink() or not source.is_dir()):
            copy(source, root)
    status = root / "var/lib/dpkg/status.d" / package  # where scanners look in images without dpkg
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text("\n".join(query("-s", package)) + "\n", encoding="utf-8")


def _is_shell_script(source: Path) -> bool:
    """Return whether a file is a shell script, useless in an image without a shell."""
    if not source.is_file():
        return False
    with source.open("rb") as file:
        return bool(SHELL_SCRIPT.match(file.read(32)))


def copy(source: Path, root: Path) -> None:
    """Copy a file or a link; symlinked directories, such as /lib, stay links."""
    if not source.is_symlink() and not source.exists():
        return  # not installed, such as documentation in slim base images
    directory = source.parent.resolve()
    target = root / directory.relative_to("/") / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (target.is_symlink() or target.exists()):
        shutil.copy2(source, target, follow_symlinks=False)


def copy_alternatives(root: Path) -> None:
    """Copy the links of update-alternatives(1) for programs in the image."""
    for link in Path("/usr/sbin").iterdir():
        if link.is_symlink() and str(link.readlink()).startswith("/etc/alternatives/"):
            chosen = link.readlink()
            if (root / chosen.readlink().relative_to("/")).exists():
                copy(link, root)
                copy(chosen, root)


def make_skeleton(root: Path) -> None:
    """Create what is not part of any package: mount points, links such as /lib, accounts."""
    for name, mode in DIRECTORIES.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name in ("bin", "lib", "lib64", "sbin"):
        if (place := Path("/", name)).is_symlink():
            (root / name).symlink_to(place.readlink())
    for name, text in FILES.items():
        (root / name).write_text(text, encoding="ascii")


def copy_program(root: Path) -> None:
    """Copy the virtual environment, and link the names that pods use: `istio-iptables`, and Envoy's path, if it is there."""
    shutil.copytree(VENV, root / VENV.relative_to("/"), symlinks=True, ignore=_other_programs)
    (packages,) = VENV.glob("lib/python*/site-packages")
    write_start(root / VENV.relative_to("/") / "bin/istio-init", PYTHON, str(packages))
    (root / VENV.relative_to("/") / "bin/istio-iptables").symlink_to("istio-init")
    for program in packages.glob("envoy/_bin/envoy"):
        link = root / "usr/local/bin/envoy"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(program)


def _other_programs(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(directory) == VENV / "bin" and not PROGRAMS.fullmatch(name)]


def compile_python(root: Path) -> None:
    """Compile all Python files, without invalidation: the image's files never change."""
    for place in (*root.glob("usr/lib/python3*"), root / VENV.relative_to("/")):
        compileall.compile_dir(
            place, quiet=2, stripdir=root, prependdir="/", invalidation_mode=PycInvalidationMode.UNCHECKED_HASH, workers=0
        )


def remove_common(root: Path, below: Path) -> None:
    """Remove files that the base image already has."""
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            file = Path(directory, name)
            other = below / file.relative_to(root)
            same_link = file.is_symlink() and other.is_symlink() and file.readlink() == other.readlink()
            if same_link or (_is_plain(file) and _is_plain(other) and filecmp.cmp(file, other, shallow=False)):
                file.unlink()
        if not os.listdir(directory):
            Path(directory).rmdir()


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def main() -> None:
    """Assemble the files of one image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="name of the image")
    parser.add_argument("root", type=Path, help="output directory")
    parser.add_argument("packages", nargs="*", help="Debian packages to include")
    parser.add_argument("--below", type=Path, action="append", default=[], help="files of a base image")
    parser.add_argument("--file-capabilities", choices=["0", "1"], default="0")
    arguments = parser.parse_args()
    root: Path = arguments.root
    root.mkdir()
    make_skeleton(root)
    packages = needed(arguments.packages)
    for package in packages:
        copy_package(package, root)
    copy_alternatives(root)
    copy_program(root)
    compile_python(root)
    sbom = root / "usr/share/sbom/image.cdx.json"
    sbom.parent.mkdir(parents=True)
    write_sbom(sbom, arguments.name, packages, root / VENV.relative_to("/"))
    for below in arguments.below:
        remove_common(root, below)
    if arguments.file_capabilities == "1":
        for name, capabilities in CAPABILITIES.items():
            subprocess.run(["setcap", capabilities, root / name], check=True)
    for directory, names, files in os.walk(root):
        for name in (*names, *files, "."):
            os.utime(Path(directory, name), (EPOCH, EPOCH), follow_symlinks=False)


if __name__ == "__main__":
    main()
