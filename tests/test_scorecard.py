"""Verdicts follow from tables by rules: each rule is shown a table for every verdict that it can give."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments import claims
from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.claims import CLAIMS, judge
from talking_heads_utils.experiments.editing import study as editing
from talking_heads_utils.experiments.positional.gains import PER_PLACE, gains
from talking_heads_utils.experiments.positional.study import gains_table
from talking_heads_utils.experiments.store import Finished
from talking_heads_utils.experiments.verdicts import NOT_JUDGED, NOT_SUPPORTED, SUPPORTED, UNDECIDED, Verdict, unsound
from talking_heads_utils.models import known_models, minis
from talking_heads_utils.site import scorecard
from talking_heads_utils.steer import grid

EXPERIMENT_NAMES = {e.name for e in EXPERIMENTS}


def agreement(low, high, null, noise=0.1):
    return pd.DataFrame([{
        "Spearman": (low + high) / 2, "low": low, "high": high, "components": 72, "prompts": 200,
        "noise alone, largest": noise, "shuffled within heads, largest": null, "rotated bases, mean": 0.1,
    }])  # fmt: skip


def removal(own, random, size=1.5):
    change = "change of I(m)"
    named = [("untouched", "nothing", 0.0, 0), ("channel", "L1H0.1", own, 1), ("random", "L1H3.0", -0.9, 0.02)]
    named += [("random", "L1H2.0", r, size) for r in random]
    rows = [{"kind": kind, "removed": name, "I(m)": 0.9, change: v, f"{change} low": v - 0.1, f"{change} high": v + 0.1,
             "size": s} for kind, name, v, s in named]  # fmt: skip
    return pd.DataFrame(rows).assign(n=100, n_items=10)


def decoding(own, random, largest=None):
    named = ((claims.COMPONENTS, own, None), (claims.RANDOM_TRIPLES, random, largest))
    rows = [dict(subspace=name, right=v, low=v - 0.05, high=v + 0.05, smallest=v - 0.1, largest=most or v + 0.1)
            for name, v, most in named]  # fmt: skip
    return pd.DataFrame(rows).assign(split="across wordings", carries="place", n_items=6, chance=1 / 6, n=200)


def reach(own, *random):
    named = ((claims.COMPONENTS, own), *((f"random {i}", values) for i, values in enumerate(random, 1)))
    rows = [dict(along=along, place=p, steered=v, low=v - 0.05, high=v + 0.05)
            for along, values in named for p, v in enumerate(values)]  # fmt: skip
    return pd.DataFrame(rows).assign(plain=0.3, n=50)


def crowding(short, long, apart, at_first=5.0, at_random=2.0):
    ends = ((3, short, at_first), (12, long, apart))
    rows = [dict(n_items=n, accuracy=a, low=a - 0.05, high=a + 0.05, apart=d, n=120) for n, a, d in ends]
    return pd.DataFrame(rows).assign(**{claims.AT_RANDOM: at_random})


def places(accuracy):
    return pd.DataFrame([dict(n_items=8, place=p, accuracy=a, n=20) for p, a in enumerate(accuracy)])


def steering(one, per_place=(1, -5, 7, 0), before=0.5, shorter=60, chosen=3):
    rows = [("no steering", 0, 0, 0, 0), ("one setting", *one), ("one setting per place", *per_place)]
    rows += [("oracle per prompt", 60, 50, 70, 55)]
    long = [{"strategy": s, "n_items": "12", "gain, points": g, "low": a, "high": b, "random directions, points": r}
            for s, g, a, b, r in rows]  # fmt: skip
    short = [row | {"n_items": "6", "gain, points": shorter, "low": shorter, "high": shorter} for row in long]
    return pd.DataFrame([*short, *long]).assign(accuracy=before, n=100, **{"where chosen, points": chosen})


def edits(gain, low, high, beyond, before=0.5):
    rows = [
        ("gradient", gain, low, high, beyond, -1.0),
        ("random gradient", 2, -3, 7, np.nan, np.nan),
        ("grid", 60, 50, 70, 40, -2.0),  # the best on the prompts that score, but not on those that choose
        ("random grid", 2, -3, 7, np.nan, np.nan),
    ]
    table = pd.DataFrame(rows, columns=["edit", "gain", "low", "high", "beyond random, low", "objective"])
    return table.assign(**{"prompts": "held-out prompts", "before": before, "n": 160, "beyond random": "told"})


def activity(own, control, texts="a text"):
    named = ((True, own), (False, control))
    rows = [dict(inhibition=kind, component=f"L{k}H{int(kind)}.0", category=category, ratio=v)
            for kind, values in named for k, v in enumerate(values)
            for category in ("comma in a list", "other")]  # fmt: skip
    return pd.DataFrame(rows).assign(n=30, texts=texts)


def patch(plain, last, copied, unpatched=0.0):
    named = (("nothing", plain, 0.2), ("layers out", last, copied))
    rows = [dict(set=name, layer=layer, about=v if layer == 2 else 0.1, copied=c if layer == 3 else unpatched)
            for name, v, c in named for layer in (-2, -1, 0, 1, 2, 3)]  # fmt: skip
    return pd.DataFrame(rows).assign(b=claims.OTHER_FUNCTION, n=64)


def heads(*needed):
    return pd.DataFrame({"components for 90%": needed}).assign(**{"of": 64, "stable rank": 2.0})


@pytest.mark.parametrize("rule, table, verdict", [
    (claims.predicted, agreement(0.5, 0.6, 0.2), SUPPORTED),
    (claims.predicted, agreement(0.1, 0.3, 0.2), UNDECIDED),
    (claims.predicted, agreement(0.5, 0.6, 0.2, noise=0.55), UNDECIDED),
    (claims.predicted, agreement(0.5, 0.6, 0.2, noise=0.65), NOT_SUPPORTED),
    (claims.predicted, agreement(0.1455, 0.3, 0.149), UNDECIDED),
    (claims.predicted, agreement(0.0, 0.1, 0.2), NOT_SUPPORTED),
    (claims.concentrated, heads(1, 2, 5), SUPPORTED),
    (claims.concentrated, heads(2, 4, 5), NOT_SUPPORTED),
    (claims.concentrated, heads(), UNDECIDED),
    (claims.lowers, removal(-0.5, (-0.1, 0.0)), SUPPORTED),
    (claims.lowers, removal(-0.5, (-0.6, 0.0)), UNDECIDED),
    (claims.lowers, removal(-0.5, (-0.45, 0.0)), UNDECIDED),
    (claims.lowers, removal(-0.5, (-0.1, 0.0), size=0.4), UNDECIDED),
    (claims.lowers, removal(-0.5, (-0.1, 0.0), size=2.5), UNDECIDED),
    (claims.lowers, removal(-0.05, (0.0, 0.0)), NOT_SUPPORTED),
    (claims.indexes, decoding(0.9, 0.3), SUPPORTED),
    (claims.indexes, decoding(0.45, 0.3), UNDECIDED),
    (claims.indexes, decoding(0.3, 0.3), NOT_SUPPORTED),
    (claims.indexes, decoding(0.6, 0.45, largest=0.64), UNDECIDED),
    (claims.indexes, decoding(0.45, 0.39, largest=0.53), NOT_SUPPORTED),
    (claims.traversed, reach((0.9, 0.8, 0.7), (0.4, 0.3, 0.3)), SUPPORTED),
    (claims.traversed, reach((0.9, 0.4, 0.3), (0.4, 0.3, 0.3)), UNDECIDED),
    (claims.traversed, reach((0.4, 0.4, 0.3), (0.4, 0.3, 0.3)), NOT_SUPPORTED),
    (claims.crowds, crowding(0.95, 0.4, 1.0), SUPPORTED),
    (claims.crowds, crowding(0.95, 0.4, 9.0), UNDECIDED),
    (claims.crowds, crowding(0.95, 0.4, 0.3, 0.5), UNDECIDED),
    (claims.crowds, crowding(0.95, 0.4, 0.3, 5.0, 5.5), UNDECIDED),
    (claims.crowds, crowding(0.95, 0.93, 1.0), NOT_SUPPORTED),
    (claims.order_matters, places((1, 1, 1, 0.2, 0.2)), SUPPORTED),
    (claims.order_matters, places((0.6, 0.5, 0.55, 0.6)), NOT_SUPPORTED),
    (claims.order_matters, places((1, 1, 1)), UNDECIDED),
    (claims.steering_gains, steering((40, 30, 50, 6)), SUPPORTED),
    (claims.steering_gains, steering((25, 5, 45, 6)), UNDECIDED),
    (claims.steering_gains, steering((1, -5, 7, 0), (40, 30, 50, 6)), UNDECIDED),
    (claims.steering_gains, steering((5, -5, 15, 6)), NOT_SUPPORTED),
    (claims.edit_gains, edits(30, 20, 40, 18), SUPPORTED),
    (claims.edit_gains, edits(10, 2, 25, -3), UNDECIDED),
    (claims.edit_gains, edits(30, 20, 40, -0.4), UNDECIDED),
    (claims.edit_gains, edits(3, -4, 9, -3), NOT_SUPPORTED),
    (claims.edit_gains, edits(3, -4, 9, -3, before=0.85), UNDECIDED),
    (claims.steering_gains, steering((21, 0.4, 41, 0.9)), UNDECIDED),
    (claims.steering_gains, steering((5, -5, 15, 6), before=0.85), UNDECIDED),
    (claims.steering_gains, steering((5, -5, 15, 6), chosen=26), UNDECIDED),
    (claims.in_lists, activity((4.0, 3.0), (1.0, 2.0)), SUPPORTED),
    (claims.in_lists, activity((4.0, 0.5), (1.0, 2.0)), UNDECIDED),
    (claims.in_lists, activity((4.0, 3.0), (1.0, 2.0), claims.OWN_TEXTS), UNDECIDED),
    (claims.in_lists, activity((0.9, 0.5), (1.0, 2.0)), NOT_SUPPORTED),
    (claims.copies_late, patch(0.8, 0.1, 0.9), SUPPORTED),
    (claims.copies_late, patch(0.8, 0.7, 0.9), NOT_SUPPORTED),
    (claims.copies_late, patch(0.8, 0.1, 0.9, 0.85), NOT_SUPPORTED),
    (claims.copies_late, patch(0.1, 0.1, 0.9), UNDECIDED),
])  # fmt: skip
def test_each_rule_gives_each_verdict_where_it_is_due(rule, table, verdict):
    found = rule.__wrapped__(table)
    assert found.verdict == verdict and found.measured and found.control
    assert "nan" not in found.measured + found.control


def test_a_rule_that_is_known_to_be_unsound_shows_its_numbers_and_gives_no_verdict():
    claim, table = next(c for c in CLAIMS if c.needs == "decoding"), decoding(0.9, 0.3)
    assert claim.rule is claims.indexes
    itself, found = claims.indexes.__wrapped__(table), judge(claim, {"decoding": table})
    assert itself.verdict == SUPPORTED and not itself.why
    assert found == replace(itself, claim=claim.name, verdict=NOT_JUDGED, why=found.why) and found.why
    results = {"planted": {"decoding": Finished({"not_possible": None}, table)}}
    assert scorecard.verdicts(results, claim) == {"planted": found}
    assert f"<td title='planted: not judged'><span aria-hidden='true'>{scorecard.MARKS[NOT_JUDGED]}</span>" in (
        scorecard.as_matrix(results)
    )
    told = scorecard.as_html(results)
    assert all(text in told for text in (found.measured, found.control, f"; not judged: {found.why}"))
    assert told.count("<em>not judged</em>") == 1 and "<em>supported</em>" not in told


@pytest.mark.parametrize("name", ["pairs", "patch", "backups"])
def test_a_claim_that_cuts_its_table_takes_the_mark_of_its_rule(name, monkeypatch):
    """Chapter 4's rules that take two tables are called on the parts of one."""
    claim = next(c for c in CLAIMS if c.needs == name)
    rule = {"pairs": "redundant", "patch": "moving_layer", "backups": "backups"}[name]
    seen = []
    judged = Verdict("", "1 of 2", "0 of 2", SUPPORTED)
    monkeypatch.setattr(claims.icl, rule, unsound("too bold")(lambda *parts: seen.append(parts) or judged))
    kinds = {"heads": ["strongest", "random"], "set": ["strongest", "other"], "b": [claims.OTHER_FUNCTION, "other"]}
    found = judge(claim, {name: pd.DataFrame(kinds)})
    assert found == Verdict(claim.name, "1 of 2", "0 of 2", NOT_JUDGED, "too bold")
    assert [len(part) for part in seen[0] if isinstance(part, pd.DataFrame)] == ([1] if name == "patch" else [1, 1])


def test_the_control_shown_is_the_one_the_rule_compares_with():
    found = claims.traversed.__wrapped__(reach((0.9, 0.8, 0.7), (0.4, 0.3, 0.3), (0.9, 0.9, 0.8)))
    assert found.verdict == UNDECIDED and "0.87" in found.control
    told = claims.indexes.__wrapped__(decoding(0.6, 0.45, largest=0.64)).control
    assert all(number in told for number in ("0.35", "0.64", "0.45", "0.40", "0.50"))


def test_a_place_that_no_answer_has_is_left_out():
    """Lists of 12 on ten prompts a half, as a quick run makes them."""
    table = places((1, 1, 1, 0.2, 0.2))
    empty = pd.DataFrame([dict(n_items=8, place=p, accuracy=np.nan, n=0) for p in (5, 6, 7)])
    assert claims.order_matters.__wrapped__(pd.concat([table, empty])) == claims.order_matters.__wrapped__(table)


def test_order_by_chance_is_seldom_called_order():
    rng = np.random.default_rng(0)
    called = [
        claims.order_matters.__wrapped__(places(rng.binomial(20, 0.6, 8) / 20), 500).verdict == SUPPORTED
        for _ in range(100)
    ]
    assert sum(called) <= 12


@pytest.mark.parametrize("helps, n, wanted", [(0.3, 96, UNDECIDED), (0.0, 800, NOT_SUPPORTED)])
def test_a_noisy_choice_is_no_verdict_on_steering(helps, n, wanted):
    """Of 125 settings one for each of 12 places raises a half of right answers by ``helps``; no other changes any."""
    settings, place, selection = grid([-2, -1, 0, 1, 2]), torch.arange(n) % 12, torch.arange(n) < n // 2
    found, short = [], 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        right = (torch.rand(n, 1, generator=generator) < 0.5).repeat(1, len(settings))
        other = torch.rand(right.shape, generator=generator) < 0.3  # answers that a setting changes at random
        right = torch.where(other & (settings != 0).any(1), torch.rand(right.shape, generator=generator) < 0.5, right)
        right[torch.arange(n), place] |= torch.rand(n, generator=generator) < 2 * helps
        gained = gains(right, selection, place, settings)
        short += gained[PER_PLACE].gain.high < 0.2
        table = gains_table({"12": (gained, [gained])}).rename(columns={"model": "n_items"})
        found.append(claims.steering_gains.__wrapped__(table).verdict)
    assert set(found) == {wanted} and short, "held-out prompts alone would say that nothing is to be gained"


def test_every_claim_has_an_experiment_a_figure_and_both_sources():
    names = EXPERIMENT_NAMES
    root = scorecard.Path(__file__).parent.parent
    for claim in CLAIMS:
        assert claim.needs in {*names, claims.WEIGHTS}, claim.name
        assert claim.rule.__doc__ or claim.rule.__name__.startswith("_"), claim.name
        page = (root / claims.CHAPTERS[claim.chapter]).read_text(encoding="utf-8")
        assert f'name=\\"{claim.where}\\"' in page, claim.link
        assert scorecard.said(claim)
    assert len(CLAIMS) >= 17 and {c.source for c in CLAIMS} == {claims.PAPER, claims.POST}
    assert len({c.name for c in CLAIMS}) == len(CLAIMS)


def counts(results):
    """Model -> how many claims have each verdict."""
    found = {}
    for claim in CLAIMS:
        for model, verdict in scorecard.verdicts(results, claim).items():
            of = found.setdefault(model, dict.fromkeys(scorecard.MARKS, 0))
            of[verdict.verdict] += 1
    return found


def test_a_real_model_without_results_is_said_to_be_not_run_and_a_toy_never_stands_for_it():
    results = scorecard.all_results()
    counted = counts(results)
    for model, known in known_models().items():
        if not results[model]:
            asked = sum(c.chapter in known.chapters and c.needs in EXPERIMENT_NAMES for c in CLAIMS)
            assert counted[model][scorecard.NOT_RUN] == asked == sum(counted[model].values())
    html = scorecard.as_html(results)
    assert html.count("<tr id='claim-") == len(CLAIMS) == scorecard.as_matrix(results).count("href='#claim-")
    assert html.count(scorecard.NOT_RUN) == sum(of[scorecard.NOT_RUN] for of in counted.values())
    assert "class='toy'><span class='verdict'>·" not in html


def test_a_control_of_another_size_is_counted_and_not_shown():
    found = claims.lowers.__wrapped__(removal(-0.5, (-0.1, 0.0)))
    assert found.control.startswith("2 of 3 ") and "-0.100" in found.control and "+0.000" in found.control
    assert all(number in found.measured for number in ("0.900", "10", "100"))
    found = claims.lowers.__wrapped__(removal(-0.5, (-0.1, 0.0), size=50))
    assert found.control.startswith("0 of 3 ")


def test_models_that_were_not_run_stand_last_in_the_matrix():
    ran = Finished({"not_possible": None}, decoding(0.9, 0.3))
    html = scorecard.as_matrix({"gpt2": {}, "planted": {"decoding": ran}, "mini-token": {"decoding": ran}})
    assert re.findall(r"<th scope='col'><span>(.*?)</span>", html) == ["planted", "mini-token", "gpt2"]
    row = re.findall(r"<td[^>]*>", next(row for row in html.split("<tr>") if "title='planted" in row))
    assert [mark.split("title='")[1].split(":")[0] for mark in row] == ["planted", "mini-token", "gpt2"]


def test_no_page_denies_a_gain_that_the_results_show():
    """What trained toys gain by edits beyond random ones: the pages take it from the numbers."""
    tables = {m: scorecard.table_of(m, "edit-gains") for stage in ("early", "") for m in minis(stage)}
    shown = [m for m, table in tables.items() if editing.said_beyond(table, [m]) != "none"]
    root = Path(__file__).parents[1]
    for page in ("book/intro.md", "notebooks/03_weight_editing.ipynb"):
        text = (root / page).read_text(encoding="utf-8")
        assert "said_beyond" in text
        denied = re.search(
            r"no clear gain|no edit gains|no gain by|(do|does) not clearly beat|neither does", text, re.I
        )
        assert not (shown and denied), f"{page} denies what {shown} show: {denied}"
    with pytest.raises(OptionError, match="not finished"):
        scorecard.table_of("planted", "heads-out")


def test_the_real_weights_have_a_row_and_a_column_of_their_own():
    results = scorecard.all_results()
    first = scorecard.verdicts(results, CLAIMS[0])
    assert set(first) == {scorecard.REAL_WEIGHTS} and first[scorecard.REAL_WEIGHTS].verdict == SUPPORTED
    assert all(scorecard.REAL_WEIGHTS not in scorecard.verdicts(results, claim) for claim in CLAIMS[1:])
    table = results[scorecard.REAL_WEIGHTS][claims.WEIGHTS].table
    assert claims.stand_out(table.assign(p=0.2)).verdict == NOT_SUPPORTED


def test_what_could_not_be_asked_is_told_with_its_reason():
    reason = Finished({"not_possible": "the tokenizer splits 23"}, pd.DataFrame())
    results = {"gpt2": {"pairs": reason}}
    claim = next(c for c in CLAIMS if c.needs == "pairs")
    found = scorecard.verdicts(results, claim)["gpt2"]
    assert found.verdict == scorecard.NOT_POSSIBLE and found.measured == "the tokenizer splits 23"
    assert judge(claim, {}) is None
    assert "not run yet" in scorecard.real_models(4) and "--dtype bfloat16" in scorecard.real_models(4)


def test_a_chapter_says_of_a_real_model_what_its_results_say(monkeypatch):
    monkeypatch.setattr(scorecard, "finished", lambda model: {})
    assert scorecard.verdict_on("gpt2", "decoding") == scorecard.NOT_RUN
    result = Finished({"not_possible": None, "chapter": 2}, decoding(0.9, 0.3))
    monkeypatch.setattr(scorecard, "finished", lambda model: {"decoding": result})
    monkeypatch.setattr(Finished, "describe", lambda self: "somehow")
    assert scorecard.verdict_on("gpt2", "decoding").startswith("not judged: place decoded in 0.90")
    assert "*not judged*, for the three components need not be" in scorecard.real_models(2)
