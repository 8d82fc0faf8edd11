"""The table of reasons: ids tell them apart, sentences can be written, and each is some rule's."""

from __future__ import annotations

import re

import pytest

from istio_init.rules.layouts import reasons
from istio_init.rules.model import Reason
from istio_init.rules.render.nft_sets import COMMENT_BYTES, join
from tests.cases import CASES
from tests.cases_current import CASES_CURRENT

REASONS = {name: value for name, value in vars(reasons).items() if isinstance(value, Reason)}
PLANS = [case.plan() for case in (*CASES, *CASES_CURRENT)]
each_reason = pytest.mark.parametrize("reason", REASONS.values(), ids=list(REASONS))


def test_ids_and_sentences_are_unique() -> None:
    assert len({reason.id for reason in REASONS.values()}) == len(REASONS)
    # Who reads a comment in a listing of nft has the sentence only.
    assert len({reason.template for reason in REASONS.values()}) == len(REASONS)


@each_reason
def test_an_id_is_a_word_and_templates_have_one_place_for_values(reason: Reason) -> None:
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", reason.id)
    assert re.findall("[{].*?[}]|[{}]", reason.template) in ([], ["{value}"])
    assert reason.value == ""
    if reason.plural:
        assert "{value}" in reason.template
        assert len(re.findall("[{][a-z ]+[}]", reason.plural)) == len(re.findall("[{}]", reason.plural)) / 2 == 1


@each_reason
def test_a_sentence_without_its_value_fits_into_a_comment_of_nft(reason: Reason) -> None:
    assert len(str(reason).encode()) <= COMMENT_BYTES


def test_each_reason_is_that_of_a_rule_of_some_case_and_each_rule_has_one() -> None:
    used = {
        rule.reason._replace(value="") for plan in PLANS for chain in plan.chains for rule in (*chain.inserted, *chain.rules)
    }
    assert used == set(REASONS.values())


def test_a_reason_tells_a_value_if_its_sentence_has_a_place_for_it() -> None:
    for plan in PLANS:
        for chain in plan.chains:
            for rule in (*chain.inserted, *chain.rules):
                assert bool(rule.reason.value) is ("{value}" in rule.reason.template)


def test_where_joined_rules_tell_their_values_the_reason_has_a_plural() -> None:
    joined = [one.rule.reason for plan in PLANS for chain in plan.chains for one in join(chain.rules) if one.values]
    assert {reason.id for reason in joined if ", " in reason.value and not reason.plural} == set()


def test_a_sentence_has_the_value_as_it_stands() -> None:
    assert str(reasons.INTERFACE_EXCLUDED.of("{value}")) == "interface {value} is excluded (-c)"
    assert str(reasons.PROXY_UID.of(0)) == "the proxy's own traffic (uid 0) must not loop"
