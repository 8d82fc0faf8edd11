"""What iptables and nft say on a kernel that lacks a part: which part that is, and which module has it.

The messages are those of iptables 1.8.9 and nft 1.0.6; of a match that this kernel lacks, with the name exchanged.
"""

from __future__ import annotations

import pytest

from istio_init.rules.kernel.modules import missing_of_nft, missing_part
from istio_init.rules.model import Family

SCRIPT = """\
*nat
:ISTIO_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
COMMIT
*mangle
:ISTIO_TPROXY - [0:0]
-A ISTIO_TPROXY -p tcp -j TPROXY --on-port 15001 --tproxy-mark 1337
-A PREROUTING -p tcp -m socket -m conntrack --ctstate ESTABLISHED -j ISTIO_DIVERT
COMMIT
"""
LEGACY_HEAD = "iptables-restore v1.8.9 (legacy): iptables-restore: "
TPROXY_WARNING = "Warning: Extension TPROXY revision 0 not supported, missing kernel module?\n"
NFT_HEAD = "iptables-nft-restore v1.8.9 (nf_tables): \n"


@pytest.mark.parametrize(
    ("message", "legacy", "what", "modules"),
    [
        (
            "Warning: Extension owner revision 0 not supported, missing kernel module?\niptables-restore: line 7 failed",
            True,
            "the match owner (table nat)",
            "module xt_owner",
        ),
        (
            f"{TPROXY_WARNING}{NFT_HEAD}line 10: RULE_APPEND failed (No such file or directory): rule in chain ISTIO_TPROXY",
            False,
            "the target TPROXY (table mangle)",
            "module xt_TPROXY",
        ),
        (
            f"{NFT_HEAD}line 4: RULE_APPEND failed (No such file or directory): rule in chain ISTIO_REDIRECT",
            False,
            "one of: match tcp, target REDIRECT (table nat)",
            "modules xt_tcpudp, xt_REDIRECT",
        ),
        (
            f"{NFT_HEAD}line 5: RULE_APPEND failed (No such file or directory): rule in chain ISTIO_OUTPUT",
            False,
            "the match owner (table nat)",
            "module xt_owner",
        ),
        (
            "iptables-restore: line 12 failed",
            True,
            "one of: match tcp, target TPROXY, match socket, match conntrack (table mangle)",
            "modules xt_tcpudp, xt_TPROXY, xt_socket, xt_conntrack",
        ),
        (
            LEGACY_HEAD + "unable to initialize table 'nat'\n\nError occurred at line: 1",
            True,
            "the table nat of legacy iptables for ipv4",
            "module iptable_nat",
        ),
        (
            f"{NFT_HEAD}line 2: CHAIN_ADD failed (No such file or directory): chain PREROUTING",
            False,
            "the table nat of nf_tables for ipv4",
            "modules nft_chain_nat, nf_tables",
        ),
        (
            "iptables-nft-restore v1.8.9 (nf_tables): Failed to initialize nft: Protocol not supported",
            False,
            "nf_tables",
            "modules nf_tables, nft_compat",
        ),
    ],
    ids=["match", "target", "rule", "rule-of-one-part", "commit", "table", "nat", "nf_tables"],
)
def test_a_missing_part_is_named_with_its_module(message: str, what: str, modules: str, *, legacy: bool) -> None:
    said = missing_part(message, SCRIPT, Family.IPV4, legacy=legacy)
    first = modules.partition(" ")[2].split(",")[0]
    assert said == f"the kernel seems to lack {what}; load the {modules} on the node (modprobe {first})"


def test_modules_of_ipv6_are_named_as_such() -> None:
    message = "ip6tables-restore v1.8.9 (legacy): ip6tables-restore: unable to initialize table 'filter'"
    assert "module ip6table_filter" in missing_part(message, "", Family.IPV6, legacy=True)
    script = "*filter\n-A ISTIO_INBOUND_IPV6 -j REJECT\nCOMMIT\n"
    assert "module ip6t_REJECT" in missing_part("ip6tables-restore: line 3 failed", script, Family.IPV6, legacy=True)
    assert "module ipt_REJECT" in missing_part("iptables-restore: line 3 failed", script, Family.IPV4, legacy=True)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "out of memory",
        "iptables-restore: line 99 failed",
        f"iptables-restore: line {'9' * 5000} failed",
        f"{NFT_HEAD}line 5: RULE_APPEND failed (Invalid argument): rule in chain ISTIO_OUTPUT",
        "iptables-restore: line 6 failed: no such thing",
    ],
)
def test_another_failure_is_not_put_down_to_the_kernel(message: str) -> None:
    assert missing_part(message, SCRIPT, Family.IPV4, legacy=False) == ""


NFT_SCRIPT = """\
table ip istio-init {
  chain nat_ISTIO_REDIRECT {
    meta l4proto tcp redirect to :15001 comment "ct socket"
  }
  chain mangle_ISTIO_TPROXY {
    ip daddr 127.0.0.1 return
  }
}
"""


def test_a_missing_statement_of_nft_is_named_with_its_module() -> None:
    message = "/dev/stdin:3:24-42: Error: Could not process rule: No such file or directory\n  redirect to :15001\n  ^^^^^"
    said = missing_of_nft(message, NFT_SCRIPT)
    assert "the statement redirect of nftables" in said
    assert "module nft_redir on the node" in said


def test_nft_without_nf_tables_is_told_so() -> None:
    message = "netlink.c:60: Unable to initialize Netlink socket: Protocol not supported"
    assert "lack nf_tables; load the module nf_tables" in missing_of_nft(message, "")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "/dev/stdin:6:5-9: Error: syntax error",
        "/dev/stdin:6:5-9: Error: Could not process rule: No such file or directory",
    ],
)
def test_another_failure_of_nft_is_not_put_down_to_the_kernel(message: str) -> None:
    assert missing_of_nft(message, NFT_SCRIPT) == ""
