"""Steering that is told nothing, against a correction of the logits by index.

Every choice is made on selection lists and scored on others. Steering adds an amount of each of three components'
directions where the component writes, at ``end``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.list_prompts import Lists, Part
from talking_heads_utils.experiments.positional.correction import corrected, fit
from talking_heads_utils.experiments.positional.crowding import N_LISTS, SCALES, Spans, enough, over_draws, selection
from talking_heads_utils.experiments.positional.ends import Listed, listed
from talking_heads_utils.experiments.positional.grid import LOGITS, Steering, answer, grid, steer
from talking_heads_utils.experiments.positional.subspace import Chosen, K, Subspace, chosen, nearest_lengths
from talking_heads_utils.experiments.rows import ModelRow, column
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.stats import Interval, points, share, share_change

LENGTHS = (4, 6)
AMOUNTS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations of a component's coefficient over lists
N_SCORED, N_NEW = 800, 400  # lists to score: in known wordings; in a new one, of new objects
N_DRAWS, N_DRAWS_CHOOSE, N_DRAWS_SCORE = 20, 60, 200  # matched triples; lists that choose for them, that score them
N_ORACLE = 100  # lists on which every setting is tried to see whether any answers


class Method(StrEnum):
    """What is changed, by choices on the selection half alone: nothing; one setting for all lists; the cloud scaled
    about its mean; a constant added to each index's logit; setting and constants. The last two are told the answers:
    bounds."""

    NONE = "none"
    ONE_SETTING = "one_setting"
    SCALING = "scaling"
    CORRECTION = "correction"
    BOTH = "setting_and_correction"
    TOLD_INDEX = "told_the_answers_index"
    ORACLE = "oracle"


@dataclass(frozen=True)
class GainRow(ModelRow):
    n_items: int = column("items", "length of the lists")
    part: str = column("", "of what lists: held_out, new_wording, new_objects")
    method: str = column("", "how a list's setting is chosen")
    subspace: str = column("", "chosen; matched: as far along other triples by the same search, on fewer lists, mean "
                           "over draws, and the draws' 2.5% and 97.5% points")  # fmt: skip
    accuracy: float = column("share", "lists answered")
    low: float = column("share", "95% interval, lower end")
    high: float = column("share", "upper end")
    gain: float = column("points", "of accuracy, paired")
    gain_low: float = column("points", "95% interval, lower end")
    gain_high: float = column("points", "upper end")
    beyond: float = column("points", "accuracy less that of the correction by index, paired")
    beyond_low: float = column("points", "95% interval, lower end")
    beyond_high: float = column("points", "upper end")
    where_chosen: float = column("points", "gain on the lists that chose")
    p: float | None = column("", "share of matched triples, this one included, with as large a gain, all by the search "
                             "and on the lists of these; of chosen alone")  # fmt: skip
    n_draws: int | None = column("triples", "matched ones")
    n: int = column("prompts", "lists")


# --- choices ---


class Choice(NamedTuple):
    """What selection lists choose among settings. plain, one, both: which changes nothing, is best alone, and with
    constants. told: of each index's own lists. constants, constants_of_both: by index, without a setting and with
    ``both``."""

    settings: Float[Tensor, "n_settings 3"]
    plain: int
    one: int
    both: int
    told: Int[Tensor, "n_items"]
    constants: Float[Tensor, "n_items"]
    constants_of_both: Float[Tensor, "n_items"]

    def outcomes(
        self, logits: Mapping[int, Float[Tensor, "n n_items"]], index: Int[Tensor, "n"]
    ) -> dict[Method, Bool[Tensor, "n"]]:
        """Which lists are answered. logits: of the settings that are chosen."""
        told = torch.stack([logits[s] for s in self.told.tolist()])[index, torch.arange(len(index))]
        given = {
            Method.NONE: logits[self.plain],
            Method.ONE_SETTING: logits[self.one],
            Method.CORRECTION: corrected(logits[self.plain], self.constants),
            Method.BOTH: corrected(logits[self.both], self.constants_of_both),
            Method.TOLD_INDEX: told,
        }
        return {method: answer(values) == index for method, values in given.items()}

    def elsewhere(self, steering: Steering, index: Int[Tensor, "n"], rows: slice) -> dict[Method, Bool[Tensor, "n"]]:
        """The same on other lists. index: of those in ``rows``."""
        used = sorted({self.plain, self.one, self.both, *self.told.tolist()})
        logits = steered(steering, self.settings[used], rows)
        return self.outcomes(dict(zip(used, logits.unbind(1))), index)


def choose(
    logits: Float[Tensor, "n n_settings n_items"], index: Int[Tensor, "n"], settings: Float[Tensor, "n_settings k"]
) -> Choice:
    """The best setting, alone and with constants fitted under it, of equals the smallest; the best for each index."""
    by_setting = logits.transpose(0, 1)
    hits, constants = answer(by_setting) == index, fit(by_setting, index)
    one = best(hits.double().mean(1), settings)
    both = best((answer(corrected(by_setting, constants)) == index).double().mean(1), settings)
    told = [best(hits[:, index == i].double().mean(1), settings) for i in range(logits.shape[2])]
    plain = int(settings.norm(dim=1).argmin())
    return Choice(settings, plain, one, both, torch.tensor(told), constants[plain], constants[both])


def best(means: Float[Tensor, "n_settings"], settings: Float[Tensor, "n_settings k"]) -> int:
    """The best setting, of equals the smallest."""
    return int(settings.norm(dim=1).masked_fill(means < means.max() - 1e-9, torch.inf).argmin())


def steered(
    steering: Steering, settings: Float[Tensor, "n_settings k"], rows: slice = slice(None)
) -> Float[Tensor, "n n_settings n_items"]:
    """Logits under each setting."""
    return steer(steering, settings, logits=True, rows=rows)[LOGITS].cpu()


# --- a length's lists ---


@dataclass(frozen=True)
class Search:
    """What selection lists chose: a setting by these logits, and which of :data:`SCALES`."""

    logits: Float[Tensor, "n n_settings n_items"]
    index: Int[Tensor, "n"]
    choice: Choice
    spans: Spans
    scale: int
    scaled: Bool[Tensor, "n scales"]


def search(at: Listed, directions: Float[Tensor, "3 d_model"]) -> Search:
    """The whole grid, and all scales, on the lists that choose. Amounts count each component's standard deviation over
    these lists."""
    index, stream = at.ends.index.cpu(), at.ends.stream
    settings = grid(AMOUNTS, K) * (stream @ directions.T).std(0).cpu()
    logits, spans = steered(at.steering, settings), Spans.of(directions[None], stream)
    scaled = at.ends.right(spans.logits(at.ends, SCALES)[:, 0]).cpu()
    scale = best(scaled.double().mean(0), torch.tensor(SCALES)[:, None] - 1)
    return Search(logits, index, choose(logits, index, settings), spans, scale, scaled)


def found_there(of: Search) -> dict[Method, Bool[Tensor, "n"]]:
    """Outcomes on the lists that chose."""
    found = of.choice.outcomes(dict(enumerate(of.logits.unbind(1))), of.index)
    every = (answer(of.logits) == of.index[:, None]).any(1)
    return found | {Method.SCALING: of.scaled[:, of.scale], Method.ORACLE: every}


def scored(of: Search, at: Listed, rows: slice, oracle: int = 0) -> dict[Method, Bool[Tensor, "n"]]:
    """Outcomes on other lists. oracle: of so many of them, whether any setting answers."""
    index = at.ends.index.cpu()
    found = of.choice.elsewhere(at.steering, index[rows], rows)
    found[Method.SCALING] = at.ends.right(of.spans.logits(at.ends, [SCALES[of.scale]], rows)[:, 0], rows)[:, 0].cpu()
    if oracle:
        every = steered(at.steering, of.choice.settings, slice(oracle))
        found[Method.ORACLE] = (answer(every) == index[:oracle, None]).any(1)
    return found


# --- rows ---


def run(c: Context) -> list[GainRow]:
    """Raises :class:`NotApplicable` as :func:`~talking_heads_utils.experiments.positional.subspace.chosen` does."""
    of, rows, asked = c.kept(chosen), list[GainRow](), nearest_lengths(c, *LENGTHS)
    for n_items in asked:
        chooses = selection(c, n_items)
        found = search(chooses, of.directions[:K])
        there = found_there(found)
        for part in (Part.HELD_OUT, Part.NEW_WORDING, Part.NEW_OBJECTS):
            first, matched = part == Part.HELD_OUT, None
            if first:
                at, some = enough(c, part, n_items, N_LISTS), slice(c.n(N_SCORED))
                if n_items == asked[-1]:
                    matched = matched_gains(c, of, found, chooses, at)
            else:
                at, some = listed(c, Lists(part, n_items, c.n(N_NEW))), slice(None)
            outcome = scored(found, at, some, c.n(N_ORACLE) if first else 0)
            rows += gain_rows(c.model, n_items, part, outcome, there, matched)
    return rows


class Gains(NamedTuple):
    """One method along the chosen triple, then along each matched one, by the same search on n lists. All shares."""

    n: int
    accuracy: Float[Tensor, "1+n_draws"]
    gain: Float[Tensor, "1+n_draws"]
    beyond: Float[Tensor, "1+n_draws"]
    where_chosen: Float[Tensor, "1+n_draws"]


def matched_gains(c: Context, of: Chosen, own: Search, chooses: Listed, at: Listed) -> dict[Method, Gains]:
    """The chosen triple, then matched ones, searched on few lists and scored on few others."""
    few, some, settings = slice(c.n(N_DRAWS_CHOOSE)), slice(c.n(N_DRAWS_SCORE)), own.choice.settings
    index, scored_index = own.index[few], at.ends.index[some].cpu()
    found: dict[Method, list[list[float]]] = {Method.ONE_SETTING: [], Method.BOTH: []}
    for draw, (choosing, scoring) in enumerate(_steerings(of, chooses.steering, at.steering)):
        logits = own.logits[few] if draw == 0 else steered(choosing, settings, few)
        choice = choose(logits, index, settings)
        there = choice.outcomes(dict(enumerate(logits.unbind(1))), index)
        here = choice.elsewhere(scoring, scored_index, some)
        chose, scores = ({m: hit.double().mean().item() for m, hit in hits.items()} for hits in (there, here))
        for method, values in found.items():
            gain, beyond = (scores[method] - scores[less] for less in (Method.NONE, Method.CORRECTION))
            values.append([scores[method], gain, beyond, chose[method] - chose[Method.NONE]])
    return {m: Gains(len(scored_index), *torch.tensor(v, dtype=torch.float64).T) for m, v in found.items()}


def _steerings(of: Chosen, *steerings: Steering) -> Iterator[tuple[Steering, ...]]:
    """Along the chosen triple, then along matched ones."""
    yield steerings
    for writers, directions in list(zip(of.matched_components, of.matched))[:N_DRAWS]:
        yield tuple(replace(s, writers=writers, directions=directions.to(s.middle)) for s in steerings)


def gain_rows(
    model: str, n_items: int, part: str, found: Mapping[Method, Tensor], there: Mapping[Method, Tensor],
    matched: Mapping[Method, Gains] | None = None,
) -> list[GainRow]:  # fmt: skip
    """found, there: outcomes on the lists that are scored and on those that chose."""
    rows = []
    for method in (m for m in Method if m in found):
        hit = found[method]
        gain, beyond = (_change(hit, found[less][: len(hit)]) for less in (Method.NONE, Method.CORRECTION))
        where = 100 * (there[method].double() - there[Method.NONE].double()).mean().item()
        drawn, p, n_draws = (matched or {}).get(method), None, None
        if drawn is not None:
            p, n_draws = rank_p(drawn.gain[0].item() - 1e-9, drawn.gain[1:]), len(drawn.gain) - 1
        rows.append(
            GainRow(model, n_items, part, method, Subspace.CHOSEN, *share(hit)[:3], *points(gain), *points(beyond),
                    where, p, n_draws, len(hit))
        )  # fmt: skip
        if drawn is not None:
            rows.append(
                GainRow(model, n_items, part, method, Subspace.MATCHED, *over_draws(drawn.accuracy[1:]),
                        *over_draws(100 * drawn.gain[1:]), *over_draws(100 * drawn.beyond[1:]),
                        100 * drawn.where_chosen[1:].mean().item(), None, n_draws, drawn.n)
            )  # fmt: skip
    return rows


def _change(after: Tensor, before: Tensor) -> Interval:
    """Paired; of equal ones exactly 0."""
    return Interval(0.0, 0.0, 0.0, len(after)) if torch.equal(after, before) else share_change(after, before)
