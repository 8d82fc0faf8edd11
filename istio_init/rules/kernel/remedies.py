"""Which capabilities are missing, what they are needed for, and how a container gets them."""

from __future__ import annotations

import os

from istio_init.rules.environment import CAP_NET_ADMIN, CAP_NET_RAW, has_capability, may_gain_privileges

BOUNDING = "CapBnd"
FILE_CAPABILITIES = "security.capability"  # the extended attribute, capabilities(7)
CAPABILITIES = {"NET_ADMIN": CAP_NET_ADMIN, "NET_RAW": CAP_NET_RAW}
PURPOSES = {
    "NET_ADMIN": "every look at rules and every change of them needs NET_ADMIN",
    "NET_RAW": "legacy iptables needs NET_RAW to open its raw socket; iptables on nf_tables does without",
}
# Without NET_ADMIN nobody can tell which kind of kernel this is; so both are told, and not one after the other.
LATER = "where the kernel has no nf_tables, legacy iptables needs NET_RAW as well"
# What is said of a refusal when nothing is missing.
OTHER_REFUSAL = "a security module or a user namespace may forbid it"


def missing_capability(program: str = "", *, needs_raw: bool = False) -> str:
    """Say how to give a program the capabilities that it does not have, and what they are for; an empty text for none.

    Args:
        program: iptables or nft, by its name on the PATH; it may have capabilities of its file. Without a name it is this
            process that lacks them.
        needs_raw: whether NET_RAW is needed, too.
    """
    lacking = [name for name in PURPOSES if (name != "NET_RAW" or needs_raw) and not has_capability(CAPABILITIES[name])]
    is_root = os.geteuid() == 0
    withheld = [name for name in lacking if is_root or not has_capability(CAPABILITIES[name], BOUNDING)]
    steps = []
    if withheld:
        which = f"capabilit{'ies' if len(withheld) > 1 else 'y'} {' and '.join(withheld)}"
        steps.append(f"give the container the {which} (securityContext.capabilities.add)")
    if lacking and not is_root:
        steps += _for_a_user(program)
    reasons = [PURPOSES[name] for name in lacking]
    if "NET_ADMIN" in lacking and "tables" in program and not (needs_raw or has_capability(CAP_NET_RAW, BOUNDING)):
        reasons.append(LATER)
    return "; ".join([", and ".join(steps), *reasons]) if steps else ""


def _for_a_user(program: str) -> list[str]:
    """Say what a user who is not root has to do to have what the container has."""
    if not program:
        return ["run as root (runAsUser: 0), for no other user has capabilities in a container"]
    if not _has_file_capabilities(program):
        return ["run as root (runAsUser: 0) or use an image that is built with FILE_CAPS=1"]
    if not may_gain_privileges():
        how = "allowPrivilegeEscalation: true, and no no-new-privileges"
        return [f"let user {os.geteuid()} use the capabilities of the file {program} ({how})"]
    return []


def _has_file_capabilities(program: str) -> bool:
    from shutil import which

    path = which(program)
    try:
        return bool(path and os.getxattr(path, FILE_CAPABILITIES))
    except OSError:  # there is none
        return False
