"""Verdicts follow from tables by fixed rules, each way; and the post's numbers are quoted as they are stored."""

import pandas as pd
import pytest

from talking_heads_utils.experiments.icl import claims, curves, post
from talking_heads_utils.experiments.icl.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED
from talking_heads_utils.experiments.verdicts import NOT_JUDGED, by_verdict
from talking_heads_utils.stats import fisher_exact


def pairs(n_up, n_down=0, n=15):
    ends = [(0.1, 0.5)] * n_up + [(-0.5, -0.1)] * n_down + [(-0.2, 0.1)] * (n - n_up - n_down)
    return pd.DataFrame(
        [dict(a="L0H0", b=f"L0H{i}", interaction=(low + high) / 2, low=low, high=high, n=64,
              log_prob_low=0.1 if i < 7 else -1) for i, (low, high) in enumerate(ends)]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("strong", "random", "verdict"),
    [((12,), (2,), SUPPORTED), ((9,), (7,), UNDECIDED), ((0,), (0,), NOT_SUPPORTED), ((2,), (14,), UNDECIDED),
     ((0, 9), (0,), NOT_SUPPORTED), ((8, 7), (0,), SUPPORTED), ((1, 9), (2, 4), UNDECIDED)],
)  # fmt: skip
def test_redundancy_must_exceed_that_of_random_pairs_and_its_opposite(strong, random, verdict):
    found = claims.redundant.__wrapped__(pairs(*strong), pairs(*random))
    down = strong[1] if len(strong) > 1 else 0
    assert found.verdict == verdict and f"{random[0]} of 15" in found.control
    of_strong, _, capped = found.measured.partition("log-probability")
    assert f"{strong[0]} of 15" in of_strong and f"{down} below" in of_strong
    assert "7" in capped, "what the ceiling makes of it is told, not judged"


@pytest.mark.parametrize(
    ("without", "verdict"),
    [((0.97, 0.93, 1.0), SUPPORTED), ((0.1, 0.05, 0.2), NOT_SUPPORTED), ((0.6, 0.5, 0.7), UNDECIDED)],
)
def test_whether_a_single_head_is_needed(without, verdict):
    levels = [(1.0, 1.0, 1.0), without, (0.05, 0.0, 0.1)]
    rows = [dict(order="by effect", out=k, head=f"L0H{k}", exact=m, low=lo, high=hi, n=64)
            for k, (m, lo, hi) in enumerate(levels)]  # fmt: skip
    rows += [dict(order="random 1", out=k, head="L1H0", exact=0.9, low=0.8, high=1.0, n=64) for k in range(3)]
    found = claims.survives.__wrapped__(pd.DataFrame(rows))
    assert found.verdict == verdict and "without L0H1" in found.measured and found.control.endswith("0.90")
    assert ("half is lost with 1 head out" if without[0] < 0.5 else "half is lost with 2 heads out") in found.measured


def test_a_model_that_cannot_do_the_task_shows_nothing_of_its_heads():
    rows = [dict(order=order, out=k, head=f"L0H{k}", exact=0.02, low=0.0, high=0.05, n=64)
            for order in ("by effect", "random 1") for k in range(3)]  # fmt: skip
    assert claims.survives.__wrapped__(pd.DataFrame(rows)).verdict == UNDECIDED


def test_the_exact_tail():
    """Fisher's test by hand: of 4 marked among 8, at least 3 among the first 4: (4*4 + 1) / 70."""
    assert fisher_exact(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher_exact(0, 5, 5, 5) == pytest.approx(1.0)


def patches(first):
    rows = []
    for name, layer in first.items():
        rows += [dict(set=name, layer=-2, exact=0.05), dict(set=name, layer=-1, exact=1.0)]
        rows += [dict(set=name, layer=k, exact=0.9 if layer is not None and k >= layer else 0.1) for k in range(4)]
    table = pd.DataFrame(rows)
    return table.assign(low=table["exact"] - 0.1, high=table["exact"] + 0.1)


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        ({"nothing": 1, "a": 2, "b": 1}, SUPPORTED),
        ({"nothing": 1, "a": 1}, NOT_SUPPORTED),
        ({"nothing": 2, "a": 3, "b": 1}, NOT_SUPPORTED),
        ({"nothing": None, "a": None}, UNDECIDED),
        ({"nothing": 1, "a": None}, UNDECIDED),
    ],
)
def test_a_layer_that_moves(first, verdict):
    assert claims.moving_layer.__wrapped__(patches(first), "nothing").verdict == verdict


def test_a_layer_that_seems_to_move_within_the_intervals_is_undecided():
    table = patches({"nothing": 1, "a": 2})
    table.loc[(table["set"] == "nothing") & (table["layer"] == 1), ["exact", "low", "high"]] = 0.5, 0.38, 0.62
    table.loc[(table["set"] == "a") & (table["layer"] == 1), ["exact", "low", "high"]] = 0.48, 0.36, 0.6
    assert claims.moving_layer.__wrapped__(table, "nothing").verdict == UNDECIDED


def heads(rise, fall, n=10, still=0):
    """Heads that rise and fall where they are held fixed, and ``still`` ones that cannot. Left free, three rise
    clearly, two fall, the rest rise on average only; of those that cannot change, all."""
    low = [0.1] * rise + [-0.2] * (n - rise)
    high = [0.2] * rise + [-0.1] * fall + [0.1] * (n - rise - fall)
    able = pd.DataFrame(dict(low=low, high=high, above=True, free=0.1, free_low=-0.1, free_high=0.3))
    able.loc[:2, "free_low"] = 0.05
    able.loc[n - 2 :, ["free", "free_low", "free_high"]] = -0.2, -0.3, -0.1
    unable = pd.DataFrame(dict(low=0.0, high=0.0, above=False, free=0.1, free_low=0.05, free_high=0.2), range(still))
    return pd.concat([able, unable], ignore_index=True)


@pytest.mark.parametrize(
    ("real", "random", "verdict"),
    [((6, 1), (1, 1), SUPPORTED), ((1, 5), (0, 0), NOT_SUPPORTED), ((3, 1), (5, 1), UNDECIDED),
     ((1, 0), (0, 0), UNDECIDED)],
)  # fmt: skip
def test_backups_rise_more_than_after_random_ablations(real, random, verdict):
    found = claims.backups.__wrapped__(heads(*real, still=4), heads(*random, still=5))
    assert found.verdict == verdict and f"held fixed: {real[0]} of 10 heads that can change rise" in found.measured
    assert found.measured.endswith(
        "left free (the post's way): 3 of 10 rise, 2 of 10 fall, and 4 of 4 that cannot change rise"
    )
    assert f"{random[0]} of 10 rise" in found.control


def test_where_no_head_lies_above_nothing_is_known_of_backups():
    some = heads(3, 1)
    none = some.assign(above=False)
    for found, which in (
        (claims.backups.__wrapped__(none, some), "these heads are"),
        (claims.backups.__wrapped__(some, none), "random ones are"),
    ):
        assert found.verdict == UNDECIDED and found.measured == f"no head can change when {which} out: none lies above"


@pytest.mark.parametrize(
    ("line", "best", "over_line", "verdict"),
    [(0.1, 0.5, (0.3, 0.5), SUPPORTED), (2.0, 0.1, (-2.2, -1.6), NOT_SUPPORTED), (0.3, 0.2, (-0.3, 0.1), UNDECIDED),
     (1.0, 0.4, (-0.7, -0.2), NOT_SUPPORTED)],
)  # fmt: skip
def test_a_line_must_beat_the_other_laws(line, best, over_line, verdict):
    """Errors of one draw go up and down together: their difference decides, not whether two wide intervals touch."""
    wide = dict(low=0.0, high=9.0, n=50)
    rows = [
        dict(law=law, error=9.0, over_line=7.0, over_line_low=6.0, over_line_high=8.0, **wide) for law in curves.LAWS
    ]
    for row, error, (low, high) in zip(rows, (line, best), ((0.0, 0.0), over_line)):
        row |= dict(error=error, over_line=error - line, over_line_low=low, over_line_high=high)
    found = claims.line_in_n.__wrapped__(pd.DataFrame(rows))
    assert found.verdict == verdict and ("less than the line's" in found.control) == (best < line)


def test_sums_that_add():
    def table(*ends):
        return pd.DataFrame([dict(n_examples=k + 1, ratio=sum(e) / 2, low=e[0], high=e[1], cosine=0.9, n=40)
                             for k, e in enumerate(ends)])  # fmt: skip

    adds = claims.adds.__wrapped__
    assert adds(table((1, 1), (0.9, 1.1), (0.8, 1.2))).verdict == SUPPORTED
    assert adds(table((1, 1), (0.9, 1.1), (1.8, 2.2))).verdict == UNDECIDED
    assert adds(table((1, 1), (1.2, 1.4), (1.8, 2.2))).verdict == NOT_SUPPORTED
    assert adds(table((1, 1), (-15.0, 29.0), (-120.0, 150.0))).verdict == UNDECIDED, "nothing is known"


def test_parts():
    def table(mlp, attention, plain=(0.98, 1.0), copied=0.5):
        rows = [dict(part=part, layer=0.0, parity=p, parity_low=p - 0.05, parity_high=p + 0.05, near=near,
                     near_low=near - 0.05, near_high=near + 0.05, parity_copied=copied, n=100)
                for part, (p, near) in (("nothing", plain), ("MLP", mlp), ("attention", attention))]  # fmt: skip
        return pd.DataFrame(rows)

    in_parts = claims.in_parts.__wrapped__
    assert in_parts(table((0.5, 0.9), (0.9, 0.9))).verdict == SUPPORTED
    assert in_parts(table((0.5, 0.1), (0.9, 0.9))).verdict == NOT_SUPPORTED, "far off is no part of it"
    assert in_parts(table((0.5, 0.9), (0.5, 0.9))).verdict == NOT_SUPPORTED, "attention does the same"
    assert in_parts(table((0.5, 0.9), (0.5, 0.9)).drop(1)).verdict == UNDECIDED, "there is no MLP"
    assert in_parts(table((0.5, 0.9), (0.6, 0.9), plain=(0.5, 0.9))).verdict == UNDECIDED, "nothing to lose"
    assert in_parts(table((0.2, 0.9), (0.9, 0.9))).verdict == NOT_SUPPORTED, "worse than chance is no chance"
    assert in_parts(table((0.75, 0.9), (0.9, 0.9))).verdict == NOT_SUPPORTED
    assert in_parts(table((0.75, 0.9), (0.9, 0.9), copied=0.75)).verdict == SUPPORTED, "a copy knows as much"
    assert in_parts(table((0.5, 0.52), (0.9, 0.9))).verdict == UNDECIDED, "perhaps half of them stay near"
    assert in_parts(table((0.5, 0.9), (0.5, 0.52))).verdict == UNDECIDED, "perhaps attention does the same"
    assert in_parts(table((0.98, 0.1), (0.9, 0.9))).verdict == NOT_SUPPORTED, "parity is kept"
    assert "size alone without 1" in in_parts(table((0.98, 0.1), (0.9, 0.9))).measured


def test_looking_back():
    ends = dict(L0H0=(0.5, 0.4, 0.6), L0H1=(0.1, 0.0, 0.2))
    rows = [dict(head=h, to_y=m, low=lo, high=hi, even=0.2, to_x=0.1, n=9) for h, (m, lo, hi) in ends.items()]
    looks_back = claims.looks_back.__wrapped__
    found = looks_back(pd.DataFrame(rows))
    assert found.verdict == SUPPORTED and "1 of 2 heads" in found.measured and "L0H0" in found.measured
    assert looks_back(pd.DataFrame(rows[1:])).verdict == NOT_SUPPORTED
    almost_even = dict(rows[0], to_y=0.22, low=0.21, high=0.23)
    assert looks_back(pd.DataFrame([almost_even])).verdict == NOT_SUPPORTED
    assert looks_back(pd.DataFrame([dict(rows[0], to_x=0.45)])).verdict == NOT_SUPPORTED, "x as much as y"


def test_the_posts_column_covers_every_claim():
    report = post.reported()
    assert report["model"] == "meta-llama/Meta-Llama-3-8B" and "6e463f3" in report["source"]
    assert sum(report["sweep"][k] for k in ("exactly_2x", "one_more", "one_less", "other")) == report["sweep"]["n"]
    verdicts = [claims.redundant(pairs(1), pairs(1)), claims.moving_layer(patches({"nothing": 1, "a": 2}), "nothing"),
                claims.backups(heads(1, 1), heads(1, 1))]  # fmt: skip
    assert {v.verdict for v in verdicts} == {NOT_JUDGED}, "rules that are known to be unsound"
    said = post.said()
    assert {v.claim for v in verdicts} <= set(said) and len(said) == 8
    assert said["Backup heads step in"].startswith("2 of 3 named heads rise")
    table = claims.verdict_table({"one": verdicts, "other": verdicts[:1]})
    assert table["claim"].tolist() == [v.claim for v in verdicts]
    assert table["verdict"].iloc[0] == by_verdict(dict.fromkeys(("one", "other"), verdicts[0].verdict))
    assert table["verdict"].iloc[1] == by_verdict({"one": verdicts[1].verdict})
    assert len(post.patching_table()) == 4


def test_an_answer_names_the_models_of_each_verdict_and_no_other_claim():
    def judged(verdict, claim="Sums add"):
        return [claims.Verdict("Earlier", "", "", claims.SUPPORTED), claims.Verdict(claim, "1.0", "0.5", verdict)]

    verdicts = {"a": judged(claims.UNDECIDED), "b": judged(claims.SUPPORTED), "c": judged(claims.UNDECIDED)}
    assert claims.answer(verdicts) == "*Sums add*: supported in b; undecided in a and c."
    assert claims.answer({name: verdicts["b"] for name in "abc"}) == "*Sums add*: supported in a, b and c."
    assert claims.measured(verdicts) == dict.fromkeys("abc", "1.0 (0.5)")
    with pytest.raises(ValueError, match="too many values"):
        claims.answer(verdicts | {"d": judged(claims.SUPPORTED, "Another")})
