"""The verdict rules of chapter 1's claims, frozen with their power: :mod:`talking_heads_utils.experiments.power`.

Every threshold is here. A rule sees what was measured (:class:`~talking_heads_utils.experiments.verdicts.Measured`) and
no model's name. Later changes are logged on the book's page of rules.
"""

from __future__ import annotations

from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict

ALPHA = 0.05  # of a rule's false positives: a smaller p supports a claim
DOUBT = 0.2  # a larger p speaks against a claim that a rule has the power to find
POWER = 0.8  # that a rule must have at the effect its claim speaks of
HALF = 0.5  # of the whole heads' effect, which few components must carry
COMPONENTS = 2  # of each head, at most, that may be called few
MARGIN = 2.5  # how many times as far down the better baseline must rank the component that carries

SUPPORTED, NOT_SUPPORTED, UNDECIDED, _ = Verdict


def _by_p(found: Measured) -> Verdict:
    """p: of all links jointly; of the listeners' AUC, by permutation of heads within layers."""
    if found.p <= ALPHA:
        return SUPPORTED
    return UNDECIDED if found.p <= DOUBT else NOT_SUPPORTED


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
