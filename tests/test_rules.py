"""The frozen rules: what each says of what was measured, how often in planted worlds, and that too few units are not
judged."""

from math import inf, isnan, nan

import numpy as np
import pandas as pd
import pytest
from conftest import made

from talking_heads_utils.experiments import icl_worlds, power, rules, worlds
from talking_heads_utils.experiments.claims import CLAIMS
from talking_heads_utils.experiments.icl import measures as icl
from talking_heads_utils.experiments.icl.patching import FirstRow
from talking_heads_utils.experiments.icl.redundancy import SetRow
from talking_heads_utils.experiments.inhibition import exchange, measures
from talking_heads_utils.experiments.inhibition.exchange_study import fresh_prompts, make_study
from talking_heads_utils.experiments.positional import interchange
from talking_heads_utils.experiments.positional import measures as positional
from talking_heads_utils.experiments.rows import frame
from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict
from talking_heads_utils.experiments.worlds import Cell
from talking_heads_utils.figures.power import power_figure
from talking_heads_utils.planted.model import INHIBITION, MOVER, plant
from talking_heads_utils.site import rules as pages

YES, NO, OPEN, NONE = Verdict


def also(found, **values):
    """What a rule reads beside the number itself, some of it changed."""
    return {"also": found["also"] | values}


INDEXES = dict(low=0.3, high=0.4, p=0.01, also=dict(chance=0.17, beyond_identity_low=0.1, beyond_identity_high=0.2))
THREE = dict(low=0.85, high=0.9, p=0.01, also=dict(of_stream_low=0.6, of_stream_high=0.7, of_same_items_low=0.6,
                                                   of_same_items_high=0.7, effect_low=0.5, stream_low=1.0))  # fmt: skip
NEAR = dict(low=0.1, high=0.2, p=0.01, also=dict(slope_low=0.2, slope_high=0.4, p_of_nearest=0.01))
CROWDS = dict(low=3.0, high=9.0, p=0.01, also=dict(accuracy=0.4, more_low=1.0, more_high=5.0))
SETS = dict(low=1.5, high=2.5, p=0.04, also=dict(joint_low=0.5))
MOVES = dict(low=1.0, high=3.0, also=dict(more_low=0.5, more_high=2.0, works=0.9))
BACKUPS = dict(low=0.2, high=0.4, p=0.04, also=dict(lost_low=0.5))
EVIDENCE = dict(low=0.9, high=1.1, also=dict(
    slope_low=0.5, slope_high=0.7, bend_low=-0.1, bend_high=0.1, order_low=0.02, order_high=0.04, rival_low=-0.1,
    rival_high=0.01,
))  # fmt: skip
EDIT = dict(low=21.0, high=25.0, control_high=5.0,
            also=dict(relative_low=50.0, relative_high=70.0, beyond_low=3.0, beyond_high=9.0))  # fmt: skip


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
    *((rules.INDEXES, INDEXES | made, verdict) for made, verdict in (
        ({}, YES), (dict(p=0.1), OPEN), (dict(p=0.3), NO), (dict(low=0.15), OPEN),
        (also(INDEXES, beyond_identity_low=-1), OPEN),
        (also(INDEXES, beyond_identity_low=-1, beyond_identity_high=-0.1), NO),
    )),
    *((rules.THREE_DIMENSIONS, THREE | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=0.7), OPEN), (dict(low=0.2, high=0.4), NO), (dict(p=0.3), NO),
        (also(THREE, of_stream_high=0.4, of_stream_low=0.3), NO),
        (also(THREE, of_same_items_low=0.1, of_same_items_high=0.2), NO),
        (also(THREE, effect_low=-0.1), NO), (also(THREE, stream_low=nan), NO),
    )),
    *((rules.TRAVERSED, made, verdict) for made, verdict in (
        (dict(value=0.6, p=0.05), YES), (dict(value=0.5, p=0.05), OPEN), (dict(value=0.0, p=0.01), NO),
        (dict(value=1.0, p=0.3), NO),
    )),
    *((rules.ERRORS_NEAR, NEAR | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=-0.1), OPEN), (also(NEAR, p_of_nearest=0.3), NO),
        (also(NEAR, slope_low=-2, slope_high=-1), NO),
    )),
    *((rules.CROWDS, CROWDS | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=1.0, high=4.0), NO), (dict(low=-1.0), OPEN), (also(CROWDS, more_low=-1), OPEN),
        (also(CROWDS, accuracy=0.97), OPEN), (dict(p=0.3), NO),
    )),
    (rules.ORDER, dict(p=0.01), YES), (rules.ORDER, dict(p=0.1), OPEN), (rules.ORDER, dict(p=0.3), NO),
    (rules.STEERING_GAINS, dict(low=1.0, high=3.0, p=0.01), YES),
    (rules.STEERING_GAINS, dict(low=-1.0, high=3.0, p=0.01), OPEN),
    (rules.STEERING_GAINS, dict(low=1.0, high=3.0, p=0.3), NO),
    (rules.LOWERS, dict(value=0.5), YES), (rules.LOWERS, dict(value=0.25), OPEN), (rules.LOWERS, dict(value=0.0), NO),
    *((rules.EDIT_GAINS, EDIT | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=10.0, high=15.0), OPEN),
        (also(EDIT, relative_low=9.0, relative_high=19.0) | dict(low=10.0, high=15.0), NO),
        (dict(control_high=40.0), NO), (also(EDIT, beyond_low=-1), OPEN),
    )),
    *((rules.REDUNDANT, SETS | made, verdict) for made, verdict in (
        ({}, YES), (dict(high=inf), YES), (dict(low=1.2), OPEN), (dict(low=1.05, high=1.2), NO), (dict(p=0.3), OPEN),
        (dict(low=0.5, high=0.7, p=0.3), NO), (also(SETS, joint_low=-0.1), OPEN), (also(SETS, joint_low=nan), OPEN),
    )),
    (rules.SURVIVES, dict(low=-0.09, high=0.0), YES), (rules.SURVIVES, dict(low=-0.2, high=-0.05), OPEN),
    (rules.SURVIVES, dict(low=-0.5, high=-0.2), NO),
    *((rules.MOVES_UP, MOVES | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=0.1), OPEN), (dict(low=0.0, high=0.0), NO), (also(MOVES, more_low=-1), OPEN),
        (also(MOVES, more_low=-2, more_high=-1), NO), (also(MOVES, works=0.3), OPEN), (also(MOVES, works=0.0), NO),
    )),
    *((rules.BACKUPS, BACKUPS | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=0.05), OPEN), (dict(low=-0.1, high=0.05), NO), (dict(p=0.3), OPEN),
        (also(BACKUPS, lost_low=-0.1), OPEN),
    )),
    *((rules.EVIDENCE, EVIDENCE | made, verdict) for made, verdict in (
        ({}, YES), (dict(low=0.4), OPEN), (dict(low=-0.1, high=0.1), NO), (also(EVIDENCE, bend_low=-0.3), OPEN),
        (also(EVIDENCE, bend_low=-0.5, bend_high=-0.3), NO), (also(EVIDENCE, order_high=0.2), OPEN),
        (also(EVIDENCE, order_low=0.2, order_high=0.3), NO), (also(EVIDENCE, rival_high=0.06), OPEN),
        (also(EVIDENCE, rival_low=0.06, rival_high=0.2), NO), (also(EVIDENCE, slope_low=-0.1, slope_high=-0.05), NO),
    )),
    *((rules.ADDS, dict(low=low, high=high, also=dict(summed_low=summed)), verdict) for low, high, summed, verdict in (
        (0.85, 1.1, 0.2, YES), (0.7, 1.1, 0.2, OPEN), (0.5, 0.7, 0.2, NO), (1.3, 1.5, 0.2, NO), (0.9, 1.1, -0.1, OPEN),
    )),
    *((rules.LOOKS_BACK, dict(p=p, also=dict(p_beyond_x=x)), verdict) for p, x, verdict in (
        (0.01, 0.01, YES), (0.01, 0.1, OPEN), (0.01, 0.3, NO), (0.3, 0.01, NO),
    )),
    *((rules.IN_PARTS, dict(also=dict(more_low=low, more_high=high)), verdict) for low, high, verdict in (
        (0.5, 2.0, YES), (1.0, 1.0, YES), (-0.5, 2.0, OPEN), (0.0, 0.0, NO),
    )),
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
    false = [cell for cell in power.IN_LISTS.cells if not cell.truth][:1]
    (row,) = frame(power.power_rows(power.IN_LISTS._replace(cells=false))).to_dict("records")
    assert row in table[table["claim"] == power.IN_LISTS.claim].to_dict("records")


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


@pytest.mark.parametrize("world, verdict", [
    ("transformer", YES), ("transformer, eight dimensions", NO), ("transformer, no channel", NO),
])  # fmt: skip
def test_three_planted_dimensions_are_told_from_eight_and_from_none(world, verdict):
    draw = worlds.through(lambda c: interchange.rows_of(c, 4, with_learned=False), positional.three_dimensions)
    (found,) = draw(Cell(world, verdict == YES, 0, 0.15, 2), 1, np.random.default_rng(0))
    assert rules.THREE_DIMENSIONS.decide(found) == verdict


DRAWN = [each for each in (*power.ON_LISTS, *power.IN_CONTEXT) if "transformers" not in each.draw.__name__]


@pytest.mark.parametrize("planted", DRAWN, ids=lambda planted: planted.claim)
def test_strong_effects_are_supported_and_their_absence_never_is(planted):
    """With the units that the rule asks for, in the easiest worlds of the table."""
    spoken = power.SPOKEN_OF[planted.claim]
    easy = [cell for cell in planted.cells if cell.truth and (cell.effect_size == spoken or cell.n_tasks == 0)]
    true = max(easy, key=lambda cell: (cell.effect_size, cell.n_heads, cell.n_tasks, -cell.noise))
    found = list(planted.draw(true, 5, np.random.default_rng(0)))
    assert not planted.rule.lacking(found[0]) and all(planted.rule(each) == YES for each in found)
    false = planted.cells[-1]
    assert not false.truth and all(
        planted.rule(each) != YES for each in planted.draw(false, 5, np.random.default_rng(0))
    )


def test_lists_are_judged_where_the_gate_lets_a_model_be_asked():
    assert positional.longest([(4, 0.52), (6, 0.33), (8, 0.21)]) == 6  # chance 0.125, half of it more: 0.1875
    assert positional.longest([(8, 0.30), (4, 0.52)]) == 8 and positional.longest([(8, 0.1), (6, 0.1)]) == 6


# --- what chapter 4's tables measure ---


def test_ratios_over_tasks_are_those_of_a_linear_part_by_hand():
    above, below = pd.Series([1.0, 2.0, 3.5]), pd.Series([2.0, 3.0, 4.0])
    found = icl.ratio_of(above, below)
    off = above - found.mean * below
    reach = 4.302652729911275 * (off.var(ddof=0) * 3 / 2 / 3) ** 0.5 / below.mean()
    assert found[:3] == pytest.approx((6.5 / 9, 6.5 / 9 - reach, 6.5 / 9 + reach))
    assert icl.ratio_of(above[:1], below[:1]).mean == 0.5 and isnan(icl.ratio_of(above[:1], below[:1]).low)


def test_heads_with_perfect_stand_ins_have_a_ratio_without_an_end():
    """Each alone costs nothing, so that no ratio can be told; what is lost together can."""
    matched = [("matched", draw, 2.0, 1.9) for draw in range(20)]
    rows = [made(SetRow, task=str(t), heads_are=kind, where="end", n_heads=5, draw=draw, joint=joint, summed=summed,
                 n=200)
            for t in range(6)
            for kind, draw, joint, summed in (("chosen", None, 2.0 + t / 10, 0.01 * (-1) ** t), *matched)]  # fmt: skip
    found = icl.redundant(frame(rows))
    assert found.low > 10 and found.high == inf and found.p == pytest.approx(1 / 21) and rules.REDUNDANT(found) == YES
    assert found.control == pytest.approx(2 / 1.9)


@pytest.mark.parametrize("kind, verdict", [("copies", YES), ("backup", YES), ("parts", NO), ("alone", NO),
                                           ("rivals", NO), ("alike", OPEN)])  # fmt: skip
def test_copies_are_told_from_parts_in_whole_planted_transformers(kind, verdict):
    """``rivals``: log-odds are no straight line, and parts lose a little more together. ``alike``: so do all heads."""
    (found,) = icl_worlds.redundant_in_transformers(Cell(kind, True, 0, 0.05, 0, 0, 60, 5), 1, np.random.default_rng(0))
    assert rules.REDUNDANT.decide(found) == verdict


def test_what_no_patch_works_without_has_not_moved_up():
    moved = {("none", True): None, ("shuffled", True): 2.0, ("none", False): 0.1, ("shuffled", False): 0.1}
    rows = [made(FirstRow, task=str(t), b_sees=sees, how=how, posts=posts, below=True, plain=9.0, moved=by, n=100)
            for t in range(6) for how in ("zero", "exchange") for (sees, posts), by in moved.items()]  # fmt: skip
    found = icl.moves_up(frame(rows))
    assert (found.value, found.control, found.also["works"]) == pytest.approx((2, 0.1, 0.5))
    assert rules.MOVES_UP(found) == OPEN


def test_every_rule_has_an_entry_with_its_power_and_a_way_back():
    table = power.stored()
    html, claims = pages.as_html(table), set(table["claim"])
    for claim, some in table.groupby("claim"):
        highest = some.loc[some["judged"] & ~some["truth"], "supported"].max()
        assert f"it is false, in {highest:.1%} of " in pages.power_in_words(table, claim)
        assert f"<details class='claim' id='rule-{claim}'>" in html and f"href='scorecard.html#claim-{claim}'" in html
    false = table[table["judged"] & ~table["truth"]]
    assert f"In {(false['supported'] > 0.05).sum()} of {len(false)} kinds" in pages.two_shares(table)
    assert "Not each" in pages.two_shares(table.assign(supported=table["supported"].where(table["truth"], 0.5)))
    assert len(power_figure(table, {claim: claim for claim in claims}).data) == 2 * len(claims)
