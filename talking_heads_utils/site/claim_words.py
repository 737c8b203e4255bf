"""The words of the scorecard and of the page of rules: what each claim says, how it is judged, how numbers read."""

from __future__ import annotations

from math import isfinite, isnan, nan

from talking_heads_utils.experiments.claims import Claim, ClaimId
from talking_heads_utils.experiments.icl import post
from talking_heads_utils.experiments.verdicts import Measured
from talking_heads_utils.known import CONTROL, GPT2_WEIGHTS

UNREAD, OVER_20 = "claimed; its number was not available here", "over 20%; counted from what is not available here"

SHORT = {
    ClaimId.STAND_OUT: "Known links stand out",
    ClaimId.LISTENERS: "Movers' queries stand out",
    ClaimId.PRIVILEGED: "Singular vectors are special",
    ClaimId.PREDICTED: "Weights name the component",
    ClaimId.CONCENTRATED: "Two components carry half",
    ClaimId.IN_LISTS: "Heads look back in lists",
    ClaimId.INDEXES: "A 3D subspace holds the index",
    ClaimId.THREE_DIMENSIONS: "Three dimensions are enough",
    ClaimId.TRAVERSED: "The point can be moved",
    ClaimId.ERRORS_NEAR: "Errors go to the nearest index",
    ClaimId.CROWDS: "Crowding costs accuracy",
    ClaimId.ORDER: "List index changes accuracy",
    ClaimId.STEERING_GAINS: "Steering raises accuracy",
    ClaimId.LOWERS: "A component carries a quarter",
    ClaimId.EDIT_GAINS: "Weight edits gain over 20%",
    ClaimId.REDUNDANT: "Heads are redundant",
    ClaimId.SURVIVES: "Two layers can be ablated",
    ClaimId.MOVES_UP: "First working layer moves up",
    ClaimId.BACKUPS: "Backup heads step in",
    ClaimId.EVIDENCE: "Log-odds follow the evidence",
    ClaimId.ADDS: "Contributions of examples add",
    ClaimId.LOOKS_BACK: "Attention to earlier answers",
    ClaimId.IN_PARTS: "MLPs hold subtasks",
}
SENTENCES = {
    ClaimId.STAND_OUT: "Known links between heads stand out in the weights alone",
    ClaimId.LISTENERS: "Name movers and their backups differ from other heads in what their queries read",
    ClaimId.PRIVILEGED: "A singular vector carries the channel better than a random basis does",
    ClaimId.PREDICTED: "Weights alone name the component that carries a head's inhibition",
    ClaimId.CONCENTRATED: "Two components per head, named by the weights, carry half of the inhibition",
    ClaimId.IN_LISTS: "In running text the heads look back in lists and at repetitions",
    ClaimId.INDEXES: "A 3D subspace encodes the index of a list item",
    ClaimId.THREE_DIMENSIONS: "Three dimensions carry the subspace's effect on behaviour",
    ClaimId.TRAVERSED: "Moving the point in that subspace by hand moves the answer",
    ClaimId.ERRORS_NEAR: "Errors go to the nearest other index in the subspace, where points are crowded",
    ClaimId.CROWDS: "Crowding costs accuracy: in a wider cloud more long lists are answered",
    ClaimId.ORDER: "Accuracy depends on the answer's list index, in kept and in shuffled order",
    ClaimId.STEERING_GAINS: "Steering improves accuracy, beyond a correction of the logits by index",
    ClaimId.LOWERS: "Removing one component lowers the name movers' inhibition score by a quarter or more",
    ClaimId.EDIT_GAINS: "Weight edits improve accuracy by over 20%",
    ClaimId.REDUNDANT: "Many heads are redundant",
    ClaimId.SURVIVES: "With all heads of two layers ablated, little changes",
    ClaimId.MOVES_UP: "The first layer whose patch works moves up as heads are ablated",
    ClaimId.BACKUPS: "Backup heads step in",
    ClaimId.EVIDENCE: "Log-odds follow the signed evidence, as a Bayes-optimal predictor's do",
    ClaimId.ADDS: "The contributions of the examples add up",
    ClaimId.LOOKS_BACK: "The token before y attends to earlier y",
    ClaimId.IN_PARTS: "MLPs hold subtasks",
}
RULES = {
    ClaimId.STAND_OUT: "The statistic is the mean percentile of all links together. Heads' names are dealt anew "
    "within every layer, once for all roles. The claim is supported if at most 5% of the deals give as high a mean, "
    "and not supported if more than 20% do. The rule takes 8 writers. The p of single links, corrected for their "
    "number, is shown beside it.",
    ClaimId.LISTENERS: "The statistic is the AUC of name movers and backup name movers against all other later heads. "
    "The claim is supported if at most 5% of choices of as many heads from the same layers reach it, and not "
    "supported if more than 20% do. The rule takes 6 such heads and 10,000 choices.",
    ClaimId.PRIVILEGED: "The statistic is the score of the best singular component over that of the best component of "
    "random bases of the same head. The claim is supported on two conditions: at most 1 of 20 random bases does as "
    "well over these heads, and at most 5% of choices of as many heads of their layers have as large a ratio. If the "
    "first alone holds, it is undecided. The rule takes 2 heads and 20 choices of heads.",
    ClaimId.PREDICTED: "In each head, the component that the weights name is compared with the one whose exchange has "
    "the largest effect. The claim is supported on two conditions: so many hits have a chance of at most 5%, and two "
    "baselines (largest singular value, largest variance) each rank the right component at least 2.5 times as far "
    "down. Where a baseline does about as well, the weights show nothing beyond it, and the claim is undecided. The "
    "rule takes 2 heads.",
    ClaimId.CONCENTRATED: "At most two components of each head, named by the weights, are exchanged in all name "
    "movers' queries at once. The statistic is their share of the whole heads' effect. The claim is supported if the "
    "lower end of its interval is at least one half and at most 5% of 99 sets, matched on layer and energy, do as "
    "much. It is not supported if the upper end is below one half or more sets do as much. The rule takes 50 prompts.",
    ClaimId.IN_LISTS: "Where a component is large, its head's attention to tokens seen before is compared with that "
    "of 100 matched components. The p is corrected for the number of heads. The claim is supported if more than half "
    "of the heads have a p of at most 5%, and not supported if none has. The rule takes 20 matched components for "
    "every head that is judged.",
    ClaimId.INDEXES: "Three coordinates are fitted on other wordings and decoded on lists of six. The claim is "
    "supported on three conditions: the lower end of the share decoded is above chance; at most 5% of 99 matched "
    "triples decode as much; the index is decoded better than the item (the interval of the difference is above "
    "zero).",
    ClaimId.THREE_DIMENSIONS: "A donor's coordinates are patched into a list of other items. The statistic is the "
    "effect on the logit difference, averaged over lists of 4 and of 6. The claim is supported if its lower ends are "
    "above 80% of what ten dimensions do, half of what the whole stream does and half of what donors of the same "
    "items do, and if in neither length more than 5% of 99 matched triples do as much. It is not supported if an "
    "upper end is below its threshold: then more dimensions count evenly, or it is the item that moves, not the "
    "index.",
    ClaimId.TRAVERSED: "Settings that bring attention to each index of lists of six are chosen on one half of the "
    "prompts and scored on the other. The claim is supported on two conditions: at most 5% of 99 matched triples, "
    "moved as far, bring as much attention over all indices; and at more than half of the indices the answer follows, "
    "with the lower end above its value without steering.",
    ClaimId.ERRORS_NEAR: "A list's margin is the distance of its point from the nearest other index's mean less that "
    "from its own. The claim is supported on two conditions. Errors go to the nearest index more often than wrong "
    "answers dealt anew within the answer's index. And the log-odds of a right answer rise with the margin. Both take "
    "intervals above zero and a p of at most 5%; that of the slope comes from 99 matched triples. The rule takes 100 "
    "errors.",
    ClaimId.CROWDS: "All deviations from the cloud's mean are doubled, without use of the answer. The claim is "
    "supported on three conditions: accuracy rises, with its interval above zero; at most 5% of 99 matched triples of "
    "equal energy raise it as much; and it rises more than in lists of 4. It is not supported if the upper end is "
    "below 5 points. Where accuracy is above 95%, it is undecided.",
    ClaimId.ORDER: "The statistic is the range of accuracy over list indices, against deals of the right answers over "
    "all lists. The claim is supported if at most 5% of the deals have as large a range, in kept and in shuffled "
    "order both, and not supported if more than 20% do in either. Whether the subspace causes this is not judged: "
    "with all lists at one point there a model answers one index, wherever the dependence comes from.",
    ClaimId.STEERING_GAINS: "One steering setting for all lists and a correction of the logits by index are chosen "
    "together on other lists. They are compared with that correction alone. The claim is supported if the interval of "
    "the difference is above zero and at most 5% of 99 matched triples, with the same search, gain as much.",
    ClaimId.LOWERS: "The component of each inhibition head that is strongest on other prompts is removed from the "
    "name movers' queries on IOI. A head counts where the lower end of the share of I(m) lost is at least a quarter "
    "and the p by matched components, corrected for the number of heads, is at most 5%. The claim is supported if "
    "half of the heads count, and not supported if none does. The rule takes 2 heads and 20 matched components for "
    "each.",
    ClaimId.EDIT_GAINS: "The edit that was best on other lists is scored. The claim is supported if the lower end of "
    "its gain is above 20 points, above the best of 20 random draws with the same search, and above a correction of "
    "the logits by index. The paper does not say whether it counts points or percent of the accuracy before: where "
    "only the percentage is above 20, the claim is undecided.",
    ClaimId.REDUNDANT: "Five heads are chosen by their direct effect and by what each brings to a twin. They are "
    "exchanged together at the last token. The statistic is joint over summed loss, over tasks. The claim is "
    "supported if its interval is above 1.25 and at most 5% of sets matched on direct effect have as much. It is not "
    "supported if the interval is below 1.25. Where matched sets have as much, or nothing is clearly lost, it is "
    "undecided. The rule takes 5 tasks of 100 prompts and 19 matched sets.",
    ClaimId.SURVIVES: "All heads of the post's two layers, in proportion to depth, are ablated at the last token, by "
    "zero and by exchange. The statistic is the change of accuracy as a share of accuracy. The claim is supported if "
    "the lower end is above minus a tenth either way, and not supported if an upper end is below. The rule takes 6 "
    "tasks of 48 prompts.",
    ClaimId.MOVES_UP: "The claim is supported on three conditions. The first working patch moves up by more than half "
    "a layer without these two layers. It moves up more than without other neighbouring pairs below it. And a patch "
    "still works in more than half of the cases. The first two take intervals over tasks. The rule takes 5 tasks of "
    "32 pairs.",
    ClaimId.BACKUPS: "Each chosen head is exchanged alone, with direction and scale of the untouched run. The "
    "statistic is the share of its direct effect that other heads recover. The claim is supported if its lower end, "
    "over tasks, is above a tenth and at most 5% of draws of matched heads have as much; where they do, it is "
    "undecided. The rule takes 5 tasks of 100 prompts and 19 draws.",
    ClaimId.EVIDENCE: "The claim is supported on five conditions, each by its interval: log-odds rise with signed "
    "evidence; their slope grows with log((1 - e) / e) at least half as fast as in proportion; ten labels bend it by "
    "a quarter at most; orders of one sequence differ by less than a tenth of the variance by evidence; no other "
    "predictor explains 5% more. The rule takes 4 rates of 100 sequences.",
    ClaimId.ADDS: "The statistic is what eight examples contribute together over the sum of what each does alone. The "
    "claim is supported if the interval lies between 0.8 and 1.25, and not supported if it lies outside. Where the "
    "sum is not clearly above zero, it is undecided. The rule takes 80 sequences.",
    ClaimId.LOOKS_BACK: "Heads' names are dealt anew within layers. The claim is supported if at most 5% of the deals "
    "give the chosen heads as much attention to earlier answers beyond an even one, and as much beyond that to "
    "earlier x. It is not supported if more than 20% do in either. The rule takes 5 tasks and 10 heads.",
    ClaimId.IN_PARTS: "A layer counts where the exchange of its part at the last token clearly loses a quarter of one "
    "attribute and at most a tenth of another. The claim is supported if more MLPs than attention layers count, by "
    "the interval over tasks with two attributes, and not supported if that interval does not reach above zero. The "
    "rule takes 4 tasks of 100 prompts.",
}
THEIRS = {
    ClaimId.CONCENTRATED: "claimed of GPT-2 small's inhibition heads",
    ClaimId.THREE_DIMENSIONS: "three dimensions; that behaviour takes from them is this book's reading",
    ClaimId.LOWERS: UNREAD,
    ClaimId.TRAVERSED: "claimed, with a grid of 21 x 21 x 21 settings",
    ClaimId.ORDER: "claimed of the order of items, through the subspace; that link is not judged here, and the "
    "number was not available",
    ClaimId.STEERING_GAINS: OVER_20,
    ClaimId.EDIT_GAINS: OVER_20,
    ClaimId.IN_LISTS: "claimed of Open Web Text",
}  # of the paper; of the rest no number was available. The post's come with its data.

SEEN, POST_HOC, WRITTEN = "†", "‡", "§"
NOTES = {
    SEEN: "Computed on these weights, with other statistics, before the rule was frozen: the verdict confirms and does "
    "not discover.",
    POST_HOC: "Post hoc: the AUC's measure was chosen after another one had shown nothing on these weights, and before "
    "any other model was asked.",
    WRITTEN: "True of this control too: its channel is written, and only the reading of it is cut.",
}
NOTED = {
    (GPT2_WEIGHTS, ClaimId.STAND_OUT): SEEN,
    (GPT2_WEIGHTS, ClaimId.LISTENERS): POST_HOC,
    (GPT2_WEIGHTS, ClaimId.PRIVILEGED): SEEN,
    (CONTROL, ClaimId.IN_LISTS): WRITTEN,
    (CONTROL, ClaimId.INDEXES): WRITTEN,
}  # model and claim -> the mark of what a reader of the verdict must know
WHY_OTHERWISE = {
    ClaimId.REDUNDANT: "The rule takes Student's interval over tasks; those of the list and the figure resample "
    "prompts too.",
    ClaimId.SURVIVES: "The rule takes the way that costs more, as a share of the accuracy before.",
    ClaimId.MOVES_UP: "The rule takes the mean of these over what B sees and over both ways.",
    ClaimId.BACKUPS: "The rule takes heads that go one by one, and Student's interval over tasks; the list has them go "
    "together.",
}  # where a rule's number is another one than the chapter's sentences show


def theirs(claim: Claim) -> str:
    """What the source shows for a claim."""
    return (THEIRS | post.said()).get(claim.id, UNREAD)


def in_words(found: Measured) -> str:
    """What was measured, with interval and n: ``gain of one setting: 3.1 [1.0, 5.2] points, n = 200``."""
    value = f"{_words(found.what)}: {number(found.value, found.low, found.high, _unit(found.what, found.unit))}"
    return f"{value}, n = {found.n:,}{'' if found.n_of == 'prompts' else f' {found.n_of}'}" if found.n else value


def control_in_words(found: Measured) -> str:
    """Its control and what else the rule reads, in words and units; empty where there is no control."""
    if not found.control_label:
        return ""
    unit = _unit(found.control_label, _unit(found.what, found.unit))
    control = number(found.control, found.control_low, found.control_high, unit)
    p = [] if isnan(found.p) else [p_in_words(found.p)]
    return ", ".join([f"{_words(found.control_label)} {control}", *p, *_also(found)])


# Where the words of a measure are not those of its name.
NAMES = {
    "share_of_the_whole_heads_effect": "share of the whole heads' effect",
    "95_percent_of_matched_sets_below": "95% of matched sets are below",
    "95_percent_of_matched_triples_below_in_logits": "95% of matched triples move the answer by less than",
    "95_percent_of_deals_within_layers_below": "95% of deals within layers are below",
    "growth_of_the_slope_with_the_log_odds_of_one_label": "growth of the slope with the log-odds of one label",
    "slope_of_the_log_odds_on_the_margin": "slope of the log-odds on the margin",
    "mlps_a_task_without_which_one_attribute_is_lost_and_another_kept": "MLPs, of each task, without which one "
    "attribute is lost and another kept",
}
PERCENT, POINTS, P = "%", "points", "p"
UNITS = {
    "range_of_accuracy_over_indices": PERCENT,
    "change_of_accuracy_without_two_layers_over_accuracy": PERCENT,
    "attention_there_beyond_matched_components": PERCENT,
    "attention_brought_there_beyond_matched_triples": PERCENT,
    "largest_share_of_the_inhibition_score": PERCENT,
    "95_percent_of_matched_triples_below_in_logits": "logits",
    "slope_of_the_log_odds_on_the_margin": "nats a standard deviation",
}
ALSO = {  # what else a rule reads: words and unit; without a unit, that of the measure
    "smallest_p_of_a_link": ("the smallest of a link", P),
    "p_against_random_bases": ("against random bases", P),
    "typical_rank": ("typical rank of the right component", "by the weights"),
    "baseline_rank": ("its rank", "by the better baseline"),
    "chance": ("chance", PERCENT),
    "beyond_identity": ("index less item", PERCENT),
    "of_stream": ("of the whole stream's effect", PERCENT),
    "of_same_items": ("of the effect of donors of the same items", PERCENT),
    "effect": ("effect of three dimensions", "logits"),
    "stream": ("effect of the whole stream", "logits"),
    "p_of_nearest": ("of the share of errors", P),
    "accuracy": ("accuracy before", PERCENT),
    "more": ("more than the control by", ""),
    "change_of_accuracy_by_a_cloud_twice_as_wide more": ("more than in shorter lists by", ""),
    "relative": ("gain", "% of the accuracy before"),
    "beyond": ("gain beyond a correction of the logits", POINTS),
    "joint": ("joint loss", "nats"),
    "works": ("cases in which a patch still works", PERCENT),
    "lost": ("direct effect lost", "logits"),
    "slope": ("slope", "nats a label"),
    "order": ("variance over orders, of that by evidence", PERCENT),
    "rival": ("variance that the best other reader explains beyond the exact one", PERCENT),
    "bend": ("bend of the line over ten labels", PERCENT),
    "summed": ("sum of single contributions", "nats"),
    "p_beyond_x": ("beyond attention to earlier x", P),
}


def _also(found: Measured) -> list[str]:
    """What else a rule reads, each with its ends; without ends that are the control's."""
    also = {"relative" if name == "percent_of_the_accuracy_before" else name: x for name, x in found.also.items()}
    told = []
    for name in dict.fromkeys(name.removesuffix("_low").removesuffix("_high") for name in also):
        value, low, high = (float(also.get(name + end, nan)) for end in ("", "_low", "_high"))
        words, unit = ALSO.get(f"{found.what} {name}") or ALSO.get(name, (plain(name), ""))
        if unit == P and isfinite(value):
            told.append(f"{words} {p_in_words(value)}")
        elif isfinite(value) or (isfinite(low) and (low, high) != (found.control_low, found.control_high)):
            told.append(f"{words} {number(value, low, high, unit or _unit(found.what, found.unit))}")
    return told


def _words(name: str) -> str:
    return NAMES.get(name, plain(name))


def _unit(name: str, otherwise: str) -> str:
    """The unit of a measure by its name; shares are told in percent."""
    share = name.startswith("share_of") or otherwise == "share"
    return UNITS.get(name, PERCENT if share else otherwise)


def p_in_words(p: float) -> str:
    """``p = 0.021``; below what the draws can tell, ``p < 0.0001``."""
    return f"p = {p:.2g}" if p >= 0.0001 else "p < 0.0001"


def plain(name: object) -> str:
    """A name in code as words."""
    return " ".join({"auc": "AUC", "mlps": "MLPs"}.get(word, word) for word in str(name).split("_"))


def number(value: float, low: float, high: float, unit: str) -> str:
    """``1.80 [1.52, 2.20] nats``, ``61% [58%, 64%]``; without a value ``1.52 to 2.20``, without an upper end ``at least
    1.52``."""
    scale, mark = (100, "%") if unit == PERCENT else (1, "")
    ends = [scale * end for end in (value, low, high)]
    size = abs(ends[0]) if isfinite(value) else max(map(abs, ends[1:]))
    whole = unit.startswith(PERCENT) and size >= 10
    digits = 0 if whole else 1 if size >= 10 or mark or unit == POINTS else 2 if size >= 0.1 else 3
    told, below, above = (f"{end:.{digits}f}{mark}" for end in ends)
    if isnan(value):
        told = "none" if isnan(low) else f"at least {below}" if isnan(high) else f"{below} to {above}"
    elif not isnan(low):
        told += f", at least {below}" if isnan(high) else f" [{below}, {above}]"
    return told if unit in ("", PERCENT) or told == "none" else f"{told}{' ' * (unit[0] != PERCENT)}{unit}"
