"""Which capabilities are missing, what they are needed for, and how to grant them to a container."""

from __future__ import annotations

import os

from istio_init.rules.environment import CAP_NET_ADMIN, CAP_NET_RAW, has_capability, may_gain_privileges
from istio_init.rules.kernel.user_namespaces import is_owner_hidden

BOUNDING = "CapBnd"
FILE_CAPABILITIES = "security.capability"  # the extended attribute, capabilities(7)
CAPABILITIES = {"NET_ADMIN": CAP_NET_ADMIN, "NET_RAW": CAP_NET_RAW}
PURPOSES = {
    "NET_ADMIN": "reading and changing rules needs NET_ADMIN",
    "NET_RAW": "legacy iptables needs NET_RAW to open its raw socket; iptables on nf_tables does not need it",
}
# Without NET_ADMIN the kernel does not reveal whether it has nf_tables, so both capabilities are mentioned at once.
LATER = "where the kernel has no nf_tables, legacy iptables needs NET_RAW as well"
# The remedies when the kernel refuses although no capability is missing.
OTHER_REFUSAL = "a security module may forbid it"
OTHER_OWNER = (
    "this network namespace belongs to another user namespace, so capabilities of this one, and being root in it, have no "
    "effect: run it in that one, or as root on the node with --network-namespace"
)


def remedy_for_refusal(program: str = "", *, needs_raw: bool = False) -> str:
    """Explain what lets the kernel permit what it refused; see `missing_capability`."""
    if is_owner_hidden():
        return OTHER_OWNER
    return missing_capability(program, needs_raw=needs_raw) or OTHER_REFUSAL


def missing_capability(program: str = "", *, needs_raw: bool = False) -> str:
    """Explain how to grant the capabilities that are missing, and what they are for.

    Args:
        program: iptables or nft, by its name on the PATH, which may have file capabilities; "" for this process.
        needs_raw: whether NET_RAW is needed besides NET_ADMIN.

    Returns:
        text for an error message; "" if nothing is missing.
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
    """Explain how a user other than root can use the container's capabilities."""
    if not program:
        return ["run as root (runAsUser: 0), because no other user has capabilities in a container"]
    if not _has_file_capabilities(program):
        return ["run as root (runAsUser: 0) or use an image that is built with FILE_CAPS=1"]
    if not may_gain_privileges():
        how = "allowPrivilegeEscalation: true, and no no-new-privileges"
        return [f"let user {os.geteuid()} use the file capabilities of {program} ({how})"]
    return []


def _has_file_capabilities(program: str) -> bool:
    from shutil import which

    path = which(program)
    try:
        return bool(path and os.getxattr(path, FILE_CAPABILITIES))
    except OSError:  # there is none
        return False
