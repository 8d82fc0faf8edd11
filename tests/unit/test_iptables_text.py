"""Rules in iptables' language: what is written can be read back, and what others wrote is told apart."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from istio_init.rules.changes import TableChange, compare, desired
from istio_init.rules.layouts import build_plan
from istio_init.rules.model import (
    BUILTIN_CHAINS,
    NO_REASON,
    OWN_CHAINS,
    Family,
    KernelRule,
    Match,
    MatchKind,
    OpaqueRule,
    Rule,
    Snapshot,
    Table,
    TableState,
    Target,
    TargetKind,
    Variant,
)
from istio_init.rules.render.iptables import (
    MATCH_WORDS,
    command_name,
    parse_rule,
    parse_save,
    render_changes,
    render_match,
    render_restore,
    render_rule,
    render_target,
)
from tests.cases import CASES, Case
from tests.cases_current import CASES_CURRENT, PAIRS
from tests.unit.strategies import valid_settings

if TYPE_CHECKING:
    from istio_init.rules.settings import Settings

# Each kind of condition as iptables-save (1.8) prints it behind `-p tcp`; ports belong to the extension of the protocol.
MATCHES = {
    MatchKind.SOURCE: (Match(MatchKind.SOURCE, "127.0.0.6/32"), "-s 127.0.0.6/32"),
    MatchKind.DESTINATION: (Match(MatchKind.DESTINATION, "127.0.0.1/32", negated=True), "! -d 127.0.0.1/32"),
    MatchKind.IN_INTERFACE: (Match(MatchKind.IN_INTERFACE, "eth0"), "-i eth0"),
    MatchKind.OUT_INTERFACE: (Match(MatchKind.OUT_INTERFACE, "lo", negated=True), "! -o lo"),
    MatchKind.PROTOCOL: (Match(MatchKind.PROTOCOL, "tcp"), "-p tcp"),
    MatchKind.SOURCE_PORT: (Match(MatchKind.SOURCE_PORT, "53"), "-m tcp --sport 53"),
    MatchKind.DESTINATION_PORT: (Match(MatchKind.DESTINATION_PORT, "8000:8100", negated=True), "-m tcp ! --dport 8000:8100"),
    MatchKind.DESTINATION_PORTS: (
        Match(MatchKind.DESTINATION_PORTS, "53,15008", negated=True),
        "-m multiport ! --dports 53,15008",
    ),
    MatchKind.UID_OWNER: (Match(MatchKind.UID_OWNER, 1337), "-m owner --uid-owner 1337"),
    MatchKind.GID_OWNER: (Match(MatchKind.GID_OWNER, 1337, negated=True), "-m owner ! --gid-owner 1337"),
    MatchKind.SOCKET: (Match(MatchKind.SOCKET), "-m socket"),
    MatchKind.CTSTATE: (Match(MatchKind.CTSTATE, "RELATED,ESTABLISHED"), "-m conntrack --ctstate RELATED,ESTABLISHED"),
    MatchKind.MARK: (Match(MatchKind.MARK, 1338, negated=True), "-m mark ! --mark 0x53a"),
    MatchKind.CONNMARK: (Match(MatchKind.CONNMARK, 1337), "-m connmark --mark 0x539"),
    MatchKind.COMMENT: (Match(MatchKind.COMMENT, "istio-init"), "-m comment --comment istio-init"),
}
TARGETS = {
    TargetKind.JUMP: (Target(TargetKind.JUMP, chain="ISTIO_IN_REDIRECT"), "-j ISTIO_IN_REDIRECT"),
    TargetKind.RETURN: (Target(TargetKind.RETURN), "-j RETURN"),
    TargetKind.ACCEPT: (Target(TargetKind.ACCEPT), "-j ACCEPT"),
    TargetKind.REJECT: (
        Target(TargetKind.REJECT, reject_with="icmp6-port-unreachable"),
        "-j REJECT --reject-with icmp6-port-unreachable",
    ),
    TargetKind.REDIRECT: (Target(TargetKind.REDIRECT, port=15001), "-j REDIRECT --to-ports 15001"),
    TargetKind.TPROXY: (
        Target(TargetKind.TPROXY, port=15006, mark=1337),
        "-j TPROXY --on-port 15006 --tproxy-mark 0x539/0xffffffff",
    ),
    TargetKind.MARK: (Target(TargetKind.MARK, mark=0xFFFFFFFF), "-j MARK --set-xmark 0xffffffff/0xffffffff"),
    TargetKind.DROP: (Target(TargetKind.DROP), "-j DROP"),
    TargetKind.SAVE_MARK: (
        Target(TargetKind.SAVE_MARK),
        "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    ),
    TargetKind.RESTORE_MARK: (
        Target(TargetKind.RESTORE_MARK),
        "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    ),
    TargetKind.ZONE: (Target(TargetKind.ZONE, zone=2), "-j CT --zone 2"),
}


def without_reasons(tables: Snapshot) -> Snapshot:
    def bare(rule: KernelRule) -> KernelRule:
        return rule._replace(reason=NO_REASON) if isinstance(rule, Rule) else rule

    return {
        name: state._replace(
            chains={chain: tuple(map(bare, rules)) for chain, rules in state.chains.items()},
            jumps=tuple((chain, bare(rule)) for chain, rule in state.jumps),
            inserted=tuple((chain, bare(rule)) for chain, rule in state.inserted),
        )
        for name, state in tables.items()
    }


def without_places(tables: Snapshot) -> Snapshot:
    """Forget what is to stand at the head of a chain: where there are no foreign rules, everything does."""
    return {name: state._replace(inserted=state.inserted + state.jumps, jumps=()) for name, state in tables.items()}


def loaded(script: str) -> str:
    """Give what iptables-save prints when a script was loaded into an empty namespace: inserted rules come first."""
    lines: list[str] = []
    first_rule = 0
    for line in script.splitlines():
        if line.startswith("-I "):
            lines.insert(first_rule, line.replace("-I ", "-A ", 1))
            continue
        lines.append(line)
        if line[0] in "*:":
            first_rule = len(lines)
    return "".join(f"{line}\n" for line in lines)


def saved(table: str, *lines: str) -> str:
    return "".join(f"{line}\n" for line in ("# Generated by iptables-save", f"*{table}", *lines, "COMMIT", "# Completed"))


def test_every_kind_of_condition_and_target_has_a_text_here() -> None:
    assert set(MATCHES) == set(MatchKind) == set(MATCH_WORDS)
    assert set(TARGETS) == set(TargetKind)


@pytest.mark.parametrize(("match", "text"), MATCHES.values(), ids=list(MATCHES))
def test_a_condition_is_written_as_iptables_save_prints_it_and_read_back(match: Match, text: str) -> None:
    assert render_match(match, "tcp") == text
    assert parse_rule(f"{text} -j RETURN") == Rule((match,), Target(TargetKind.RETURN))


@pytest.mark.parametrize("kind", [MatchKind.SOURCE_PORT, MatchKind.DESTINATION_PORT])
def test_a_port_is_written_with_the_extension_of_the_rules_protocol(kind: MatchKind) -> None:
    rule = Rule((Match(MatchKind.PROTOCOL, "udp"), Match(kind, "53")), Target(TargetKind.RETURN))
    assert render_rule(rule) == f"-p udp -m udp {MATCH_WORDS[kind].option} 53 -j RETURN"
    assert parse_rule(render_rule(rule)) == rule


@pytest.mark.parametrize(("target", "text"), TARGETS.values(), ids=list(TARGETS))
def test_a_target_is_written_as_iptables_save_prints_it_and_read_back(target: Target, text: str) -> None:
    assert render_target(target) == text
    assert parse_rule(text) == Rule((), target)


def test_a_rule_with_every_condition_is_read_back() -> None:
    rule = Rule(tuple(match for match, _ in MATCHES.values()), Target(TargetKind.RETURN))
    assert parse_rule(render_rule(rule)) == rule


@given(settings=valid_settings)
def test_what_is_written_for_any_settings_is_read_back_as_planned(settings: Settings) -> None:
    plan = build_plan(settings)
    for family in Family:
        wanted = desired(plan, family)
        found = parse_save(loaded(render_restore(plan, family)))
        assert found == without_places(without_reasons(wanted))
        assert compare(wanted, found) == []


@given(before=valid_settings, after=valid_settings)
def test_a_script_names_only_chains_of_ours_and_appends_to_built_in_ones(before: Settings, after: Settings) -> None:
    current, wanted = (desired(build_plan(settings), Family.IPV4) for settings in (before, after))
    for line in render_changes(compare(wanted, current)).splitlines():
        verb, _, rest = line.partition(" ")
        if line.startswith(":") or verb == "-X":
            assert (line[1:].split()[0] if line.startswith(":") else rest) in OWN_CHAINS
        elif verb in ("-A", "-D", "-I"):
            chain = rest.split()[0]
            assert chain in (BUILTIN_CHAINS if verb == "-I" else OWN_CHAINS | BUILTIN_CHAINS)
            if chain in BUILTIN_CHAINS:
                assert rest.split()[-1] in OWN_CHAINS or "-m comment --comment istio-init -j" in rest
        else:
            assert line == "COMMIT" or line.startswith("*")


@pytest.mark.parametrize("case", [*CASES, *CASES_CURRENT, *PAIRS], ids=lambda case: case.name)
def test_each_case_is_read_back_as_planned(case: Case) -> None:
    plan = case.plan()
    for family in Family:
        assert compare(desired(plan, family), parse_save(loaded(render_restore(plan, family)))) == []


@pytest.mark.parametrize(
    ("kernel", "rule"),
    [
        (
            "! -d 127.0.0.1/32 -p tcp -j TPROXY --on-port 15001 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff",
            Rule(
                (Match(MatchKind.DESTINATION, "127.0.0.1/32", negated=True), Match(MatchKind.PROTOCOL, "tcp")),
                Target(TargetKind.TPROXY, port=15001, mark=1337),
            ),
        ),
        (
            "-p tcp -j TPROXY --on-port 15006 --on-ip :: --tproxy-mark 0x539/0xffffffff",
            Rule((Match(MatchKind.PROTOCOL, "tcp"),), Target(TargetKind.TPROXY, port=15006, mark=1337)),
        ),
        (
            "-d ::1.2.3.4/128 -j RETURN",
            Rule((Match(MatchKind.DESTINATION, str(ip_network("::102:304"))),), Target(TargetKind.RETURN)),
        ),
        ("-j REJECT --reject-with tcp-reset", Rule((), Target(TargetKind.REJECT, reject_with="tcp-reset"))),
        ("-p tcp -m tcp -j RETURN", Rule((Match(MatchKind.PROTOCOL, "tcp"),), Target(TargetKind.RETURN))),
        ("-j MARK --set-xmark 0x539/0xffffffff", Rule((), Target(TargetKind.MARK, mark=1337))),
    ],
)
def test_what_a_kernel_adds_or_spells_out_is_the_rule_that_was_planned(kernel: str, rule: Rule) -> None:
    assert parse_rule(kernel) == rule


OPAQUE = (
    "",
    '-m comment --comment "by hand" -j RETURN',
    "-p sctp -m sctp --dport 53 -j RETURN",
    "-p tcp -m multiport --sports 80,443 -j RETURN",
    "-p tcp -m mark --mark 0x1/0xff -j RETURN",
    "-p tcp -m connmark ! --mark 0x1/0xff -j RETURN",
    "-m owner --uid-owner 0-99 -j RETURN",
    "-p tcp -m tcp --dport 80 --tcp-flags SYN SYN -j RETURN",
    "-m socket --transparent -j ISTIO_DIVERT",
    "-m socket --nowildcard -j ISTIO_DIVERT",
    "-m owner --socket-exists -j RETURN",
    "-p tcp -j REDIRECT",
    "-p tcp -j REDIRECT --to-ports 15001-15010",
    "-p tcp -j REDIRECT --to-ports 15001 --random",
    "-p tcp -j TPROXY --on-port 15001 --on-ip 10.0.0.1 --tproxy-mark 0x539/0xffffffff",
    "-p tcp -j TPROXY --on-port 15001 --on-ip 0.0.0.0 --tproxy-mark 0x1/0x1",
    "-j MARK --set-xmark 0x1/0xff",
    "-j MARK --set-xmark nonsense",
    "-j MARK --or-mark 0x1",
    "-j REJECT",
    "-j DNAT --to-destination 10.0.0.1:80",
    "-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
    "-j CONNMARK --set-xmark 0x1/0xffffffff",
    "-j CT --notrack",
    "-j CT --zone-orig 1",
    "-j CT --zone mark",
    "-j SOME_CHAIN",
    "-g ISTIO_OUTPUT",
    "-p tcp",
    "-j",
    "-d",
)


@pytest.mark.parametrize("text", OPAQUE)
def test_a_rule_that_the_model_has_no_words_for_is_kept_as_it_is_written(text: str) -> None:
    rule = parse_rule(text)
    assert rule == OpaqueRule(text)
    assert render_rule(rule) == text


def test_an_unknown_rule_in_a_chain_of_ours_can_be_put_back() -> None:
    text = '-m comment --comment "by hand" -j RETURN'
    state = parse_save(saved("nat", ":ISTIO_OUTPUT - [0:0]", f"-A ISTIO_OUTPUT {text}"))
    assert state == {Table.NAT: TableState({"ISTIO_OUTPUT": (OpaqueRule(text),)})}
    assert f"-A ISTIO_OUTPUT {text}\n" in render_changes(compare(state, {}))


BUILTINS = (":PREROUTING ACCEPT [0:0]", ":INPUT ACCEPT [12:345]", ":OUTPUT ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]")


def test_an_empty_table_holds_nothing() -> None:
    assert parse_save("") == {}
    assert parse_save(saved("nat", *BUILTINS)) == {Table.NAT: TableState({})}


def test_comments_and_warnings_of_iptables_save_are_no_rules() -> None:
    text = "# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n" + saved("nat", *BUILTINS)
    assert parse_save(text) == {Table.NAT: TableState({})}


@pytest.mark.parametrize("table", ["security", "broute"])
def test_tables_that_no_layout_uses_are_read_past(table: str) -> None:
    theirs = saved(
        table, ":OUTPUT ACCEPT [0:0]", ":ISTIO_OUTPUT - [0:0]", "-A OUTPUT -j ISTIO_OUTPUT", "-A ISTIO_OUTPUT -j DROP"
    )
    assert parse_save(theirs + saved("filter", ":INPUT ACCEPT [0:0]")) == {Table.FILTER: TableState({})}


@pytest.mark.parametrize("table", Table)
def test_each_table_is_read(table: Table) -> None:
    found = parse_save(saved(table, ":ISTIO_OUTPUT - [0:0]", "-A ISTIO_OUTPUT -j RETURN"))
    assert found == {table: TableState({"ISTIO_OUTPUT": (Rule((), Target(TargetKind.RETURN)),)})}


@pytest.mark.parametrize(
    "lines",
    [
        (":INPUT DROP [0:0]",),
        (":INPUT ACCEPT [0:0]", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"),
        (":INPUT ACCEPT [0:0]", "-A INPUT"),
        (":DOCKER - [0:0]",),
        (":ISTIO_CUSTOM - [0:0]",),
        (":INPUT ACCEPT [0:0]", ":ISTIO_CUSTOM - [0:0]", "-A INPUT -j ISTIO_CUSTOM"),
    ],
    ids=["policy", "rule", "rule-without-words", "chain", "chain-named-like-ours", "jump-to-a-chain-named-like-ours"],
)
def test_rules_chains_and_policies_of_others_are_foreign(lines: tuple[str, ...]) -> None:
    (state,) = parse_save(saved("filter", *lines)).values()
    assert state._replace(endings=()) == TableState({}, foreign=True)


@pytest.mark.parametrize(
    "jump",
    [
        "-j ISTIO_OUTPUT",
        "-g ISTIO_OUTPUT",
        '-m comment --comment "to the mesh" -j ISTIO_OUTPUT',
        '-m comment --comment "-j ACCEPT" -j ISTIO_OUTPUT',
        "-p udp -m udp --dport 53 -j ISTIO_OUTPUT",
    ],
)
def test_any_jump_from_a_built_in_chain_into_ours_is_ours(jump: str) -> None:
    found = parse_save(saved("nat", *BUILTINS, ":ISTIO_OUTPUT - [0:0]", f"-A OUTPUT {jump}"))
    (state,) = found.values()
    assert [(chain, render_rule(rule)) for chain, rule in state.inserted] == [("OUTPUT", jump)]
    assert not state.foreign
    assert f"-D OUTPUT {jump}\n" in render_changes(compare({}, found))


SIGNED = "-i net1 -m comment --comment istio-init -j RETURN"


def test_a_rule_in_a_built_in_chain_that_bears_our_comment_is_ours() -> None:
    found = parse_save(saved("nat", *BUILTINS, f"-A PREROUTING {SIGNED}"))
    (state,) = found.values()
    assert [(chain, render_rule(rule)) for chain, rule in state.inserted] == [("PREROUTING", SIGNED)]
    assert not state.foreign
    assert f"-D PREROUTING {SIGNED}\n" in render_changes(compare({}, found))


@pytest.mark.parametrize(
    "rule",
    [
        '-m comment --comment "as in -m comment --comment istio-init -j RETURN" -j ACCEPT',
        "-m comment --comment istio-initial -j RETURN",
        "-m comment --comment istio -j RETURN",
    ],
)
def test_a_rule_with_another_comment_is_foreign(rule: str) -> None:
    (state,) = parse_save(saved("nat", *BUILTINS, f"-A PREROUTING {rule}")).values()
    assert state._replace(endings=()) == TableState({}, foreign=True)


def test_ours_before_any_foreign_rule_of_the_chain_are_told_from_those_behind_one() -> None:
    lines = (
        *(*BUILTINS, ":ISTIO_OUTPUT - [0:0]", "-A PREROUTING -p udp -j ACCEPT", f"-A PREROUTING {SIGNED}"),
        *("-A OUTPUT -j ISTIO_OUTPUT", "-A OUTPUT -p udp -j ACCEPT", "-A OUTPUT -p tcp -j ISTIO_OUTPUT"),
    )
    (state,) = parse_save(saved("nat", *lines)).values()
    assert [(chain, render_rule(rule)) for chain, rule in state.inserted] == [("OUTPUT", "-j ISTIO_OUTPUT")]
    assert [(chain, render_rule(rule)) for chain, rule in state.jumps] == [
        ("PREROUTING", SIGNED),
        ("OUTPUT", "-p tcp -j ISTIO_OUTPUT"),
    ]


@pytest.mark.parametrize(
    "rule",
    [
        '-m comment --comment "not -j ISTIO_OUTPUT" -j ACCEPT',
        '-m comment --comment "as in -j ISTIO_OUTPUT here"',
        '-j LOG --log-prefix "before -j ISTIO_OUTPUT now "',
        '-m comment --comment "\\"-j ISTIO_OUTPUT \\" x"',
    ],
)
def test_a_rule_that_only_speaks_of_a_chain_of_ours_is_foreign(rule: str) -> None:
    (state,) = parse_save(saved("nat", *BUILTINS, ":ISTIO_OUTPUT - [0:0]", f"-A OUTPUT {rule}")).values()
    assert state._replace(endings=()) == TableState({"ISTIO_OUTPUT": ()}, foreign=True)


def test_a_foreign_chain_that_jumps_into_ours_is_told() -> None:
    lines = (*BUILTINS, ":ISTIO_OUTPUT - [0:0]", ":THEIRS - [0:0]", "-A THEIRS -j ISTIO_OUTPUT", "-A THEIRS -g ISTIO_OUTPUT")
    (state,) = parse_save(saved("nat", *lines)).values()
    uses = ("ISTIO_OUTPUT", "THEIRS")
    assert state == TableState({"ISTIO_OUTPUT": ()}, foreign=True, users=(uses, uses))


def test_jumps_that_stand_twice_are_both_read() -> None:
    jump = "-A OUTPUT -p tcp -j ISTIO_OUTPUT"
    (state,) = parse_save(saved("nat", *BUILTINS, ":ISTIO_OUTPUT - [0:0]", jump, jump)).values()
    assert len(state.inserted) == 2


def test_a_change_names_each_part_in_an_order_that_a_kernel_takes() -> None:
    jump = Rule((), Target(TargetKind.JUMP, chain="ISTIO_OUTPUT"))
    change = TableChange(
        Table.NAT,
        {"ISTIO_OUTPUT": (Rule((), Target(TargetKind.RETURN)),)},
        dropped=("ISTIO_REDIRECT",),
        removed_jumps=(("OUTPUT", OpaqueRule("-p tcp -j ISTIO_REDIRECT")),),
        added_jumps=(("OUTPUT", jump),),
        inserted_jumps=(
            ("PREROUTING", OpaqueRule("-i a -j ISTIO_OUTPUT")),
            ("PREROUTING", OpaqueRule("-i b -j ISTIO_OUTPUT")),
        ),
    )
    assert render_changes([change]).splitlines() == [
        "*nat",
        ":ISTIO_OUTPUT - [0:0]",
        ":ISTIO_REDIRECT - [0:0]",
        "-D OUTPUT -p tcp -j ISTIO_REDIRECT",
        "-A ISTIO_OUTPUT -j RETURN",
        "-I PREROUTING -i b -j ISTIO_OUTPUT",
        "-I PREROUTING -i a -j ISTIO_OUTPUT",
        "-A OUTPUT -j ISTIO_OUTPUT",
        "-X ISTIO_REDIRECT",
        "COMMIT",
    ]


def test_no_changes_are_no_script() -> None:
    assert render_changes([]) == ""


@pytest.mark.parametrize(
    ("family", "variant", "verb", "name"),
    [
        (Family.IPV4, Variant.PLAIN, "", "iptables"),
        (Family.IPV6, Variant.PLAIN, "save", "ip6tables-save"),
        (Family.IPV4, Variant.NFT, "restore", "iptables-nft-restore"),
        (Family.IPV6, Variant.LEGACY, "", "ip6tables-legacy"),
    ],
)
def test_binaries_have_the_names_that_distributions_give_them(
    family: Family, variant: Variant, verb: str, name: str
) -> None:
    assert command_name(family, variant, verb) == name
