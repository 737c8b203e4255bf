"""The frozen rules: what each says of what was measured, how often in planted worlds, and that too few units are not
judged."""

import pytest

from talking_heads_utils.experiments import power, rules
from talking_heads_utils.experiments.claims import CLAIMS
from talking_heads_utils.experiments.inhibition import exchange, measures
from talking_heads_utils.experiments.inhibition.exchange_study import fresh_prompts, make_study
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant

YES, NO, OPEN, NONE = Verdict


@pytest.mark.parametrize("rule, found, verdict", [
    (rules.STAND_OUT, dict(p=0.05), YES), (rules.STAND_OUT, dict(p=0.06), OPEN), (rules.STAND_OUT, dict(p=0.21), NO),
    (rules.LISTENERS, dict(p=0.05), YES), (rules.LISTENERS, dict(), NO),
    (rules.PRIVILEGED, dict(p=0.05, also={"p_against_random_bases": 0.01}), YES),
    (rules.PRIVILEGED, dict(p=0.06, also={"p_against_random_bases": 0.01}), OPEN),
    (rules.PRIVILEGED, dict(p=0.01, also={"p_against_random_bases": 0.06}), NO),
    (rules.PREDICTED, dict(also={"typical_rank": 2.0, "baseline_rank": 5.0}, p=0.03), YES),
    (rules.PREDICTED, dict(also={"typical_rank": 1.0, "baseline_rank": 1.0}, p=0.03), OPEN),
    (rules.PREDICTED, dict(also={"typical_rank": 2.0, "baseline_rank": 9.0}, p=1.0), NO),
    (rules.CONCENTRATED, dict(value=0.6, low=0.5, high=0.7, p=0.01), YES),
    (rules.CONCENTRATED, dict(value=0.5, low=0.4, high=0.6, p=0.01), OPEN),
    (rules.CONCENTRATED, dict(value=0.3, low=0.2, high=0.4, p=0.01), NO),
    (rules.CONCENTRATED, dict(value=0.9, low=0.8, high=1.0, p=0.2), NO),
    (rules.IN_LISTS, dict(value=1.0), YES), (rules.IN_LISTS, dict(value=0.5), OPEN), (rules.IN_LISTS, dict(), NO),
])  # fmt: skip
def test_a_rule_gives_one_of_three_verdicts(rule, found, verdict):
    assert rule.decide(Measured("x", **({"value": 0.0} | found))) == verdict


def test_too_few_units_are_not_judged():
    rule = Rule(lambda found: YES, {"heads": 2, "readers": 5})
    few = Measured("x", 1.0, units={"heads": 2, "readers": 4})
    assert rule(few) == NONE and rule.lacking(few) == {"readers": (4, 5)}
    assert rule(Measured("x", 1.0, units={"heads": 2, "readers": 5})) == YES


def test_every_rule_has_the_power_to_judge():
    table = power.stored()
    judged = table[table["judged"]]
    assert set(table["claim"]) == {claim.id for claim in CLAIMS if claim.rule} == set(power.SPOKEN_OF)
    false = judged[~judged["truth"]]
    by_chance = 2 * (rules.ALPHA * (1 - rules.ALPHA) / false["n_worlds"]) ** 0.5
    assert (false["supported"] <= rules.ALPHA + by_chance).all()
    for claim, effect in power.SPOKEN_OF.items():
        spoken = judged[judged["truth"] & (judged["claim"] == claim) & (judged["effect_size"] == effect)]
        assert len(spoken) and spoken.loc[spoken["noise"] == spoken["noise"].min(), "supported"].min() >= rules.POWER


def test_the_table_is_what_its_seed_gives():
    table = power.stored()
    planted = power.IN_LISTS
    cell = planted.cells.index(next(cell for cell in planted.cells if not cell.truth))
    row = frame([power._row(planted, planted.cells[cell], power.N_WORLDS, 0)])
    stored = table[table["claim"] == planted.claim].iloc[[cell]].reset_index(drop=True)
    assert row.to_dict("records") == stored.to_dict("records")


@pytest.mark.parametrize("planted, predicted, concentrated", [
    (dict(rank=2, idle=12, flat=0.2, noise=0.0), YES, YES),
    (dict(rank=8, noise=0.0), None, NO),
    (dict(rank=2, idle=12, flat=0.2, channel=False), NO, NO),
])  # fmt: skip
def test_planted_components_are_found_where_they_carry_and_nowhere_else(planted, predicted, concentrated):
    truth = plant(strength=20.0, **planted)
    prompts = fresh_prompts(truth.tokenizer, (20, 50), 0)
    study = make_study(truth.bridge, truth.tokenizer, truth.roles[MOVER], truth.roles[INHIBITION], *prompts)
    if predicted:
        hits = frame([row for head in study.heads for row in exchange.hit_rows(study, head)])
        assert rules.PREDICTED(measures.predicted(hits)) == predicted
    table = frame(exchange.exchange_rows(study, exchange.ALL, study.heads))
    assert rules.CONCENTRATED(measures.concentrated(table)) == concentrated
