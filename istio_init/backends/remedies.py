"""Which capability is missing, what it is needed for, and how a container gets it."""

from __future__ import annotations

import os

from istio_init.environment import CAP_NET_ADMIN, CAP_NET_RAW, has_capability, may_gain_privileges

BOUNDING = "CapBnd"
FILE_CAPABILITIES = "security.capability"  # the extended attribute, capabilities(7)
PURPOSES = {
    "NET_ADMIN": (CAP_NET_ADMIN, "which every look at rules and every change of them needs"),
    "NET_RAW": (CAP_NET_RAW, "which legacy iptables needs to open its raw socket; iptables on nf_tables does without"),
}


def missing_capability(program: str, *, needs_raw: bool) -> str:
    """Name a capability that a program needs and does not have, for what, and how to give it; an empty text for none.

    Args:
        program: iptables or nft, by its name on the PATH; it may have capabilities of its file.
        needs_raw: whether it needs NET_RAW, too.
    """
    for name, (number, purpose) in PURPOSES.items():
        if (name == "NET_RAW" and not needs_raw) or has_capability(number):
            continue
        if not has_capability(number, BOUNDING) or os.geteuid() == 0:
            return f"give the container the capability {name} (securityContext.capabilities.add), {purpose}"
        if not _has_file_capabilities(program):
            return (
                f"user {os.geteuid()} lacks the capability {name}, {purpose}; run as root (runAsUser: 0), "
                "or use an image that is built with FILE_CAPS=1"
            )
        if not may_gain_privileges():
            return (
                f"{program} may not use the capability {name} of its file, {purpose}; "
                "a user who is not root needs allowPrivilegeEscalation: true, and no `no-new-privileges`"
            )
    return ""


def _has_file_capabilities(program: str) -> bool:
    from shutil import which  # noqa: PLC0415 - only a refusal needs it

    path = which(program)
    try:
        return bool(path and os.getxattr(path, FILE_CAPABILITIES))
    except OSError:  # there is none
        return False
