"""Deduces from the messages of iptables and nft which kernel module is missing. Pure.

Neither program names a module. Their messages, as of iptables 1.8.9 and nft 1.0.6:

- `Extension owner revision 1 not supported, missing kernel module?` names the match or target; iptables asks the kernel only
  about revisions above 0, so it is not printed for all of them.
- `line 7: RULE_APPEND failed (No such file or directory)`, on nf_tables, gives the line of the script.
- `line 9 failed`, on legacy tables, gives the line of COMMIT: any rule of that table may be the cause.
- `unable to initialize table 'nat'` names the table.
- `Failed to initialize nft: Protocol not supported`: the kernel has no nf_tables at all.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.matches import nft_modules, xtables_modules
from istio_init.rules.model import Family, Table

if TYPE_CHECKING:
    from collections.abc import Iterable

# Compiled only once something has failed, because every pod start imports this module.
EXTENSION = r"Extension (\S+) revision \d+ not supported"
TABLE = r"unable to initialize table [`'\"](\w+)'"
LINE = r"line (\d{1,9}): (?:RULE|CHAIN|TABLE)_?\w* failed \(|line (\d{1,9}) failed"
NFT_LINE = r":(\d{1,9}):\d+-\d+: Error: Could not process rule: (?:No such file|Operation not supported|Protocol not)"
NO_NFTABLES = ("Failed to initialize nft", "Unable to initialize Netlink socket", "cache initialization failed")
NO_SUCH_PART = ("No such file or directory", "not supported", "No chain/target/match by that name")

LEGACY_TABLES = {Family.IPV4: "iptable_", Family.IPV6: "ip6table_"}
IP = {Family.IPV4: "ip", Family.IPV6: "ip6"}


def missing_part(message: str, script: str, family: Family, *, legacy: bool) -> str:
    """Describe what iptables-restore or iptables-save failed to find in the kernel, and the module to load.

    Args:
        message: the program's stderr.
        script: its stdin.
        family: family of the rules.
        legacy: whether the program uses legacy tables.

    Returns:
        text for an error message, or "" if the failure had another cause.
    """
    import re

    if any(words in message for words in NO_NFTABLES):
        return _say("nf_tables", ["nf_tables", "nft_compat"])
    if absent := re.search(TABLE, message):
        return _say(f"the table {absent[1]} of legacy iptables for {family}", [f"{LEGACY_TABLES[family]}{absent[1]}"])
    lines = script.splitlines()
    if names := list(dict.fromkeys(re.findall(EXTENSION, message))):
        table = _table_of(next((i for i, line in enumerate(lines) if names[0] in line.split()), 0), lines)
        parts = [f"{'target' if name.isupper() else 'match'} {name}" for name in names]
        return _say(f"the {' and the '.join(parts)} (table {table})", [_module(name, family) for name in names])
    found = re.search(LINE, message)
    number = int(found[1] or found[2]) if found else 0
    if not (found and 1 <= number <= len(lines)):
        return ""
    return _of_line(message, lines, number - 1, family, legacy=legacy)


def _of_line(message: str, lines: list[str], index: int, family: Family, *, legacy: bool) -> str:
    line, table = lines[index], _table_of(index, lines)
    if line == "COMMIT" and legacy:
        first = max(i for i in range(index) if lines[i].startswith("*"))
        names = _parts(lines[first:index])
    elif not any(words in message for words in NO_SUCH_PART):
        return ""
    elif line.startswith(("*", ":")):
        modules = [*(["nft_chain_nat"] if table == Table.NAT else []), "nf_tables"]
        return _say(f"the table {table} of nf_tables for {family}", modules)
    else:
        names = _parts([line])
    if not names:
        return ""
    which = ", ".join(f"{'target' if name.isupper() else 'match'} {name}" for name in names)
    modules = [_module(name, family) for name in names]
    return _say(f"{'one of: ' if len(names) > 1 else 'the '}{which} (table {table})", modules)


def missing_of_nft(message: str, script: str) -> str:
    """Describe what nft failed to find in the kernel, and the module to load.

    Args:
        message: its stderr.
        script: its stdin.

    Returns:
        text for an error message, or "" if the failure had another cause.
    """
    import re

    if any(words in message for words in NO_NFTABLES):
        return _say("nf_tables", ["nf_tables"])
    found = re.search(NFT_LINE, message)
    lines = script.splitlines()
    if not (found and 1 <= int(found[1]) <= len(lines)):
        return ""
    line = lines[int(found[1]) - 1]
    statements = nft_modules() | {"type nat": "nft_chain_nat"}
    parts = [part for part in statements if re.search(rf"\b{part}\b", line.partition(" comment ")[0])]
    if not parts:
        return ""
    table = next((name for name in Table if re.search(rf"\b{name}[_ ]", line)), "")
    where = f" (table {table})" if table else ""
    return _say(f"the statement {', or '.join(parts)} of nftables{where}", [statements[part] for part in parts])


def _say(what: str, modules: Iterable[str]) -> str:
    names = list(dict.fromkeys(modules))
    plural = "modules" if len(names) > 1 else "module"
    return f"the kernel seems to lack {what}; load the {plural} {', '.join(names)} on the node (modprobe {names[0]})"


def _table_of(index: int, lines: list[str]) -> str:
    return next((lines[i][1:] for i in range(min(index, len(lines) - 1), -1, -1) if lines[i].startswith("*")), "unknown")


def _parts(rules: list[str]) -> list[str]:
    """List the matches and targets that rules use, except our own chains and those that need no module."""
    import re

    found = [name for rule in rules for name in re.findall(r"(?:^| )-(?:[mpj]|-match|-protocol|-jump) ([\w-]+)", rule)]
    return [name for name in dict.fromkeys(found) if _module(name, Family.IPV4) and not (_is_ours(name) or name.isdigit())]


def _is_ours(name: str) -> bool:
    return name.startswith("ISTIO_")


def _module(name: str, family: Family) -> str:
    """Return the module that implements a match or target; "" for a verdict, which needs none."""
    return xtables_modules().get(name, f"xt_{name}").replace("{ip}", IP[family])
