"""What tests need of the machine: a visible skip where it is missing, a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NoReturn

import pytest

TOOLS = ("iptables-nft-restore", "iptables-legacy-restore", "ip", "nsenter", "unshare")


def need_namespaces() -> None:
    """Go on only where network namespaces can be made and rules written in them."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        give_up("only root may make network namespaces")
    if missing:
        give_up(f"not installed: {', '.join(missing)}")
    if subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode != 0:
        give_up("this machine does not let root make network namespaces")


def give_up(reason: str) -> NoReturn:
    """Skip this test and say why; in CI, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must be able to run this: {reason}")
    pytest.skip(reason)
