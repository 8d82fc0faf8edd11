"""Whatever a user types: it is taken for what it says or refused, and is never more than one value."""

from __future__ import annotations

import re
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.core.errors import InvalidInput
from istio_init.core.option import Value
from istio_init.rules.layout import ISTIO_1_0, ISTIO_1_30, LAYOUTS
from istio_init.rules.layouts import build_plan
from istio_init.rules.options import ENABLE_INBOUND_IPV6, ENVOY_USER
from istio_init.rules.render import render
from istio_init.rules.settings import NO_ACCOUNTS, Accounts, HostFacts, Settings, parse_settings
from istio_init.rules.values import cidr
from tests.unit.strategies import NAMES, NAMES_OF, any_text, cidrs, ipv6_cidrs, nearly_valid, port_lists

EVERYBODY = Accounts(uid=lambda _: 1000, gid=lambda _: 1000)


FACTS = HostFacts(nameservers=("10.96.0.10", "fd00::10"))


def parse(accounts: Accounts = NO_ACCOUNTS, layout: str = ISTIO_1_0, /, **texts: str) -> Settings:
    return parse_settings({name: Value(text, f"--{name}") for name, text in texts.items()}, accounts, layout, FACTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*NAMES, ENVOY_USER, ENABLE_INBOUND_IPV6])
@given(text=any_text)
def test_any_text_is_taken_or_refused_as_bad_input(name: str, layout: str, text: str) -> None:
    try:
        settings = parse(NO_ACCOUNTS, layout, **{name: text})
    except InvalidInput as error:
        refused_by = error.where
    else:
        refused_by = f"--{name}"
        assert isinstance(settings, Settings)
    assert refused_by == f"--{name}"


@given(text=port_lists | nearly_valid)
def test_a_port_list_that_is_taken_holds_ports_only(text: str) -> None:
    try:
        ports = parse(inbound_exclude_ports=text).inbound_exclude_ports
    except InvalidInput:
        return
    for port in ports:
        first, _, last = port.partition(":")
        assert 1 <= int(first) <= int(last or first) <= 65535
    assert parse(inbound_exclude_ports=",".join(ports)).inbound_exclude_ports == ports


@given(text=port_lists)
def test_a_well_formed_port_list_means_the_ports_that_it_names(text: str) -> None:
    named = {re.sub("-", ":", word.strip()) for word in text.split(",") if word.strip()}
    spans = {tuple(map(int, word.split(":"))) for word in named}
    taken = [tuple(map(int, port.split(":"))) for port in parse(inbound_ports=text).inbound_ports]
    assert {(span[0], span[-1]) for span in taken} == {(span[0], span[-1]) for span in spans}
    assert len(taken) == len(set(taken))


@given(text=cidrs | ipv6_cidrs)
def test_a_cidr_means_what_the_standard_library_says(text: str) -> None:
    canonical, written, masked = cidr(text, "-i")
    assert written == text
    network = ip_network(text, strict=False)
    assert canonical == str(network)
    assert masked == (text.partition("/")[0] != str(network.network_address))
    assert cidr(canonical, "-i") == (canonical, canonical, False)


# One line of what `--dry-run` prints for iptables-restore: words without these characters only, so that no line can be two
# and no word means anything to a shell.
WORD = r"[^\s\"'`\\$&|;<>()*?\[\]{}!#~]+"
LINE = re.compile(
    rf"# (istio-1\.0|istio-1\.30), ipv[46]|# also needed: ip (-6 )?(rule|route|addr)( {WORD})+|"
    rf"\*(raw|mangle|nat|filter)|:ISTIO_[A-Z_]+ - \[0:0\]|-[AI] [A-Z_]+( !| {WORD})* -j [A-Z_]+( {WORD})*|COMMIT",
)

# TPROXY's pair, or an owner as user and group; in layout current an owner has five in each family.
RULES_OF_AN_ITEM = {ISTIO_1_0: 2, ISTIO_1_30: 2 * 5 * 2}

# The other values: with them a value under test shows in the most rules.
AROUND = {
    ISTIO_1_0: {"mode": "TPROXY", "inbound_ports": "*", "service_cidrs": "10.0.0.0/8"},
    ISTIO_1_30: {
        "mode": "TPROXY",
        "inbound_ports": "*",
        "service_cidrs": "10.0.0.0/8",
        "virtual_interfaces": "vm0",
        "redirect_dns": "true",
        "dual_stack": "true",
    },
}


@pytest.mark.parametrize(
    ("layout", "name"), [(layout, name) for layout in LAYOUTS for name in (*NAMES_OF[layout], ENVOY_USER)]
)
@given(text=any_text)
def test_no_text_becomes_a_word_of_the_shell_or_a_rule_of_its_own(layout: str, name: str, text: str) -> None:
    around = AROUND[layout]
    try:
        plan = build_plan(parse(EVERYBODY, layout, **{**around, name: text}))
    except InvalidInput:
        return
    lines = render(plan).split("\n")
    assert lines.pop() == ""
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    rules = [line for line in lines if line.startswith(("-A", "-I"))]
    assert [rule for rule in rules if rule.split().count("-j") != 1] == []
    assert len(rules) == sum(len(chain.rules) + len(chain.inserted) for chain in plan.chains)
    # A list makes so many rules an item at most, and one at its end; a single value none of its own.
    most = sum(len(chain.rules) + len(chain.inserted) for chain in build_plan(parse(NO_ACCOUNTS, layout, **around)).chains)
    assert len(rules) <= most + RULES_OF_AN_ITEM[layout] * (text.count(",") + 1)


@given(text=st.text())
def test_a_name_of_an_account_never_reaches_the_rules(text: str) -> None:
    try:
        settings = parse(EVERYBODY, proxy_uids=text, proxy_gids=text)
    except InvalidInput:
        return
    assert all(isinstance(owner, int) for owner in (*settings.proxy_uids, *settings.proxy_gids))
