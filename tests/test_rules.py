"""The frozen rules: what each says of what was measured, and that too few units are not judged."""

import pytest

from talking_heads_utils.experiments import rules
from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict

YES, NO, OPEN, NONE = Verdict


@pytest.mark.parametrize("rule, found, verdict", [
    (rules.STAND_OUT, dict(p=0.01, also={"smallest_holm_p": 0.04}), YES),
    (rules.STAND_OUT, dict(p=0.01, also={"smallest_holm_p": 0.06}), OPEN),
    (rules.STAND_OUT, dict(p=0.06, also={"smallest_holm_p": 0.04}), NO),
    (rules.LISTENERS, dict(p=0.05), YES), (rules.LISTENERS, dict(p=0.06), NO), (rules.LISTENERS, dict(), NO),
    (rules.PRIVILEGED, dict(p=0.05, also={"p_against_random_bases": 0.01}), YES),
    (rules.PRIVILEGED, dict(p=0.06, also={"p_against_random_bases": 0.01}), OPEN),
    (rules.PRIVILEGED, dict(p=0.01, also={"p_against_random_bases": 0.06}), NO),
    (rules.PREDICTED, dict(value=1.0, control=4.0, p=0.03), YES),
    (rules.PREDICTED, dict(value=1.0, control=1.0, p=0.03), OPEN),
    (rules.PREDICTED, dict(value=1.0, control=64.0, p=1.0), NO),
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
