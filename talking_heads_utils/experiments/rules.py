"""The verdict rules of chapter 1's claims, frozen with their power: :mod:`talking_heads_utils.experiments.power`.

Every threshold is here. A rule sees what was measured (:class:`~talking_heads_utils.experiments.verdicts.Measured`) and
no model's name. Later changes are logged on the book's page of rules.
"""

from __future__ import annotations

from talking_heads_utils.experiments.verdicts import Measured, Rule, Verdict

ALPHA = 0.05  # of a rule's false positives
POWER = 0.8  # that a rule must have at the effect its claim speaks of
HALF = 0.5  # of the whole heads' effect, which few components must carry
MARGIN = 4.0  # how many times as far down the better baseline must rank the component that carries

SUPPORTED, NOT_SUPPORTED, UNDECIDED, _ = Verdict


def _stand_out(found: Measured) -> Verdict:
    """p: of all links jointly. also: ``smallest_holm_p`` of the single links."""
    if not found.p <= ALPHA:
        return NOT_SUPPORTED
    return SUPPORTED if found.also["smallest_holm_p"] <= ALPHA else UNDECIDED


def _listeners(found: Measured) -> Verdict:
    """p: of the AUC, by permutation of the readers within layers."""
    return SUPPORTED if found.p <= ALPHA else NOT_SUPPORTED


def _privileged(found: Measured) -> Verdict:
    """p: of the ratio in these heads being that of others, by permutation of heads. also: ``p_against_random_bases``,
    of these heads alone."""
    if not found.also["p_against_random_bases"] <= ALPHA:
        return NOT_SUPPORTED
    return SUPPORTED if found.p <= ALPHA else UNDECIDED


def _predicted(found: Measured) -> Verdict:
    """p: exact, of so many hits. value, control: geometric mean rank of the component that carries, by the weights and
    by the better baseline. Undecided where a baseline finds it about as well."""
    if not found.p <= ALPHA:
        return NOT_SUPPORTED
    return SUPPORTED if found.control >= MARGIN * found.value else UNDECIDED


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


STAND_OUT = Rule(_stand_out)
LISTENERS = Rule(_listeners)
PRIVILEGED = Rule(_privileged)
PREDICTED = Rule(_predicted)
CONCENTRATED = Rule(_concentrated)
IN_LISTS = Rule(_in_lists)
