"""The verdict rules of both sources' claims, frozen with their power: :mod:`talking_heads_utils.experiments.power`.

Every threshold is here. A rule sees what was measured (:class:`~talking_heads_utils.experiments.verdicts.Measured`) and
no model's name. Later changes are logged on the book's page of changes.
"""

from __future__ import annotations

from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict

ALPHA = 0.05  # of a rule's false positives: a smaller p supports a claim
DOUBT = 0.2  # a larger p speaks against a claim that a rule has the power to find
POWER = 0.8  # that a rule must have at the effect its claim speaks of
HALF = 0.5  # of the whole heads' effect, which few components must carry
COMPONENTS = 2  # of each head, at most, that may be called few
MARGIN = 2.5  # how many times as far down the better baseline must rank the component that carries
PLATEAU = 0.8  # of what ten dimensions do, which three must
QUARTER = 0.25  # of the movers' inhibition score, which a component's removal must take
SCALE = 2.0  # by which the cloud is widened
FLAT = 5.0  # points: a smaller change of accuracy is called flat
CEILING = 0.95  # above such an accuracy a wider cloud has nothing to gain
TWENTY = 20.0  # points, or percent of the accuracy before
TENTH = 0.1  # of an accuracy, an effect or a variance: what is smaller is called little
SUM = (0.8, 1.25)  # a ratio to a sum within these is called the sum
HALF_A_LAYER = 0.5  # by which the first working patch must move up, at least
BEND = 0.25  # of a slope, which ten labels may add to it or take from it, at most, where it is called straight
RIVAL = 0.05  # of the held-out variance: a rival reader that tells less beyond signed evidence tells little

SUPPORTED, NOT_SUPPORTED, UNDECIDED, _ = Verdict


def _small(*ps: float) -> Verdict:
    """The largest of p's."""
    p = max(ps)
    return SUPPORTED if p <= ALPHA else UNDECIDED if p <= DOUBT else NOT_SUPPORTED


def _by_p(found: Measured) -> Verdict:
    """p: of all links jointly; of the listeners' AUC, by permutation of heads within layers; of so large a range of
    accuracy over indices in kept and in shuffled order, the larger one, by right answers dealt anew."""
    return _small(found.p)


def _privileged(found: Measured) -> Verdict:
    """p: of so large a ratio in these heads, by permutation of heads within layers. also: ``p_against_random_bases``,
    of these heads alone. Undecided where the basis is privileged, but not in these heads more than in others."""
    if not found.also["p_against_random_bases"] <= ALPHA:
        return NOT_SUPPORTED
    return SUPPORTED if found.p <= ALPHA else UNDECIDED


def _predicted(found: Measured) -> Verdict:
    """p: exact, of so many heads whose first is right. also: ``typical_rank`` and ``baseline_rank`` of the component
    that carries. Undecided where a baseline finds it about as well."""
    if not found.p <= ALPHA:
        return NOT_SUPPORTED
    return SUPPORTED if found.also["baseline_rank"] >= MARGIN * found.also["typical_rank"] else UNDECIDED


def _concentrated(found: Measured) -> Verdict:
    """value, low, high: share of the whole heads' effect. p: against matched sets."""
    if found.high < HALF or not found.p <= ALPHA:
        return NOT_SUPPORTED
    return SUPPORTED if found.low >= HALF else UNDECIDED


def _in_lists(found: Measured) -> Verdict:
    """value: share of the heads whose p against matched components, Holm over heads, is at most :data:`ALPHA`."""
    if found.value > HALF:
        return SUPPORTED
    return UNDECIDED if found.value > 0 else NOT_SUPPORTED


STAND_OUT = Rule(_by_p, {"writers": 8})
LISTENERS = Rule(_by_p, {"listeners": 6, "choices_of_heads": 10_000})
PRIVILEGED = Rule(_privileged, {"heads": 2, "choices_of_heads": 20})
PREDICTED = Rule(_predicted, {"heads": 2})
CONCENTRATED = Rule(_concentrated, {"prompts": 50})
IN_LISTS = Rule(_in_lists, {"matched_components_a_head": 20, "heads": 2})


# --- chapters 2 and 3: several conditions, each with three outcomes ---


def _all_of(*parts: Verdict) -> Verdict:
    """Supported where every condition is, not supported where one is not, else undecided."""
    return NOT_SUPPORTED if NOT_SUPPORTED in parts else UNDECIDED if UNDECIDED in parts else SUPPORTED


def _above(low: float, high: float, level: float = 0) -> Verdict:
    """Whether a whole interval lies above a level; without one it does not."""
    return SUPPORTED if low > level else UNDECIDED if high > level else NOT_SUPPORTED


def _indexes(found: Measured) -> Verdict:
    """value, low, high: share decoded. p: against matched triples. also: ``chance``, ``beyond_identity_low`` and
    ``beyond_identity_high``, of the difference."""
    also = found.also
    return _all_of(_above(found.low, found.high, also["chance"]), _small(found.p),
                   _above(also["beyond_identity_low"], also["beyond_identity_high"]))  # fmt: skip


def _three_dimensions(found: Measured) -> Verdict:
    """value, low, high: of what ten dimensions do. p: against matched triples. also: ``of_stream_low`` and
    ``of_stream_high``, of what the whole stream does; ``effect_low`` and ``stream_low``, of either effect, in logits;
    ``of_same_items_low`` and ``of_same_items_high``, of what donors of the same items do."""
    also = found.also
    if not (also["effect_low"] > 0 and also["stream_low"] > 0):
        return NOT_SUPPORTED
    return _all_of(
        _above(found.low, found.high, PLATEAU), _above(also["of_stream_low"], also["of_stream_high"], HALF),
        _above(also["of_same_items_low"], also["of_same_items_high"], HALF), _small(found.p),
    )  # fmt: skip


def _traversed(found: Measured) -> Verdict:
    """value: share of indices whose answer follows. p: of so much attention, against matched triples."""
    follows = SUPPORTED if found.value > HALF else UNDECIDED if found.value > 0 else NOT_SUPPORTED
    return _all_of(follows, _small(found.p))


def _errors_near(found: Measured) -> Verdict:
    """value, low, high: share of errors that go to the nearest index, less that of errors dealt anew. p: of the
    margin's slope, against matched triples. also: ``slope_low``, ``slope_high`` and ``p_of_nearest``."""
    also = found.also
    return _all_of(_above(found.low, found.high), _above(also["slope_low"], also["slope_high"]),
                   _small(found.p, also["p_of_nearest"]))  # fmt: skip


def _crowds(found: Measured) -> Verdict:
    """value, low, high: change of accuracy, in points. p: against matched triples. also: ``accuracy`` before, and
    ``more_low`` and ``more_high``, of the change less that in shorter lists. Undecided where accuracy has no room."""
    if not found.also["accuracy"] <= CEILING:
        return UNDECIDED
    rises = NOT_SUPPORTED if found.high < FLAT else _above(found.low, found.high)
    return _all_of(rises, _above(found.also["more_low"], found.also["more_high"]), _small(found.p))


def _steering_gains(found: Measured) -> Verdict:
    """value, low, high: accuracy less that of the correction by index, in points. p: against matched triples."""
    return _all_of(_above(found.low, found.high), _small(found.p))


def _lowers(found: Measured) -> Verdict:
    """value: share of the heads with a component whose removal takes :data:`QUARTER` at least, beyond matched ones."""
    return SUPPORTED if found.value >= HALF else UNDECIDED if found.value > 0 else NOT_SUPPORTED


def _edit_gains(found: Measured) -> Verdict:
    """value, low, high: gain in points. control_high: best gain of random draws. also: ``relative_low`` and
    ``relative_high``, in percent; ``beyond_low`` and ``beyond_high``, of what it adds to a correction by index.
    Undecided where 20 is passed in percent of the accuracy before, but not in points."""
    also = found.also
    points, percent = _above(found.low, found.high, TWENTY), _above(also["relative_low"], also["relative_high"], TWENTY)
    twenty = UNDECIDED if points == NOT_SUPPORTED and percent != NOT_SUPPORTED else points
    return _all_of(twenty, _above(found.low, found.high, found.control_high),
                   _above(also["beyond_low"], also["beyond_high"]))  # fmt: skip


INDEXES = Rule(_indexes, {"prompts": 400, "matched_triples": 99})
THREE_DIMENSIONS = Rule(_three_dimensions, {"pairs": 200, "matched_triples": 99})
TRAVERSED = Rule(_traversed, {"prompts": 100, "matched_triples": 99})
ERRORS_NEAR = Rule(_errors_near, {"prompts": 500, "errors": 100, "matched_triples": 99})
CROWDS = Rule(_crowds, {"prompts": 500, "matched_triples": 99})
ORDER = Rule(_by_p, {"prompts_an_order": 400})
STEERING_GAINS = Rule(_steering_gains, {"prompts": 800, "matched_triples": 20})
LOWERS = Rule(_lowers, {"heads": 2, "matched_components_a_head": 20})
EDIT_GAINS = Rule(_edit_gains, {"prompts": 1000, "random_draws": 20})


# --- chapter 4: tasks in context ---


def _within(low: float, high: float, least: float, most: float) -> Verdict:
    """Whether a whole interval lies between two marks; where it is wholly outside it does not."""
    if least <= low and high <= most:
        return SUPPORTED
    return NOT_SUPPORTED if high < least or low > most else UNDECIDED


def _redundant(found: Measured) -> Verdict:
    """value, low, high: joint over summed loss. p: against sets matched on direct effect. also: ``joint_low``, in nats.
    Undecided where nothing is clearly lost, and where matched sets lose as much more than their sum: all heads may be
    redundant, or log-odds bend."""
    return _of_what_is_lost(found, found.also["joint_low"], SUM[1])


def _of_what_is_lost(found: Measured, lost: float, level: float) -> Verdict:
    if not lost > 0:
        return UNDECIDED
    return _all_of(_above(found.low, found.high, level), SUPPORTED if found.p <= ALPHA else UNDECIDED)


def _survives(found: Measured) -> Verdict:
    """value, low, high: change of accuracy over accuracy, of two ways the one that costs more."""
    return _above(found.low, found.high, -TENTH)


def _moves_up(found: Measured) -> Verdict:
    """value, low, high: in layers. also: ``more_low`` and ``more_high``, of it less that without other pairs of layers
    below; ``works``: share of tasks and ways in which a patch still works."""
    also = found.also
    works = SUPPORTED if also["works"] > HALF else UNDECIDED if also["works"] > 0 else NOT_SUPPORTED
    return _all_of(works, _above(found.low, found.high, HALF_A_LAYER), _above(also["more_low"], also["more_high"]))


def _backups(found: Measured) -> Verdict:
    """value, low, high: share recovered. p: against heads matched on direct effect. also: ``lost_low``, in logits.
    Undecided where nothing is clearly lost, and where as much is recovered of what matched heads lose."""
    return _of_what_is_lost(found, found.also["lost_low"], TENTH)


def _evidence(found: Measured) -> Verdict:
    """value, low, high: growth of the slope with the log-odds of one label, 1 where slopes are in proportion to them.
    also: ``slope_low`` and ``slope_high``, nats a label; ``bend_low`` and ``bend_high``, over ten labels, share of the
    slope; ``order_low`` and ``order_high``, share of the variance by evidence; ``rival_low`` and ``rival_high``, share
    of the held-out variance that the best rival tells beyond."""
    also = found.also
    return _all_of(
        _above(also["slope_low"], also["slope_high"]), _above(found.low, found.high, HALF),
        _within(also["bend_low"], also["bend_high"], -BEND, BEND),
        _above(-also["order_high"], -also["order_low"], -TENTH),
        _above(-also["rival_high"], -also["rival_low"], -RIVAL),
    )  # fmt: skip


def _adds(found: Measured) -> Verdict:
    """value, low, high: together over summed. also: ``summed_low``, in nats. Undecided where little is summed."""
    return _within(found.low, found.high, *SUM) if found.also["summed_low"] > 0 else UNDECIDED


def _looks_back(found: Measured) -> Verdict:
    """p: of so much more attention to earlier answers, by permutation of heads within layers. also: ``p_beyond_x``, of
    so much more to answers than to earlier x."""
    return _small(found.p, found.also["p_beyond_x"])


def _in_parts(found: Measured) -> Verdict:
    """also: ``more_low`` and ``more_high``, of the number of MLPs less that of attention layers."""
    return _above(found.also["more_low"], found.also["more_high"])


REDUNDANT = Rule(_redundant, {"tasks": 5, "prompts": 100, "matched_sets": 19})
SURVIVES = Rule(_survives, {"tasks": 6, "prompts": 48, "ways": 2})
MOVES_UP = Rule(_moves_up, {"tasks": 5, "prompts": 32})
BACKUPS = Rule(_backups, {"tasks": 5, "prompts": 100, "matched_draws": 19})
EVIDENCE = Rule(_evidence, {"rates": 4, "sequences": 100})
ADDS = Rule(_adds, {"sequences": 80})
LOOKS_BACK = Rule(_looks_back, {"tasks": 5, "heads": 10})
IN_PARTS = Rule(_in_parts, {"tasks": 4, "prompts": 100})
