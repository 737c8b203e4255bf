"""Where, in running text, the heads attend when the component that inhibits is large."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from talking_heads_utils.components import is_empty, write_directions
from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.corpus import Corpus
from talking_heads_utils.experiments.dealt import drawn_test
from talking_heads_utils.experiments.inhibition.prediction import Coefficients, predicted_components
from talking_heads_utils.experiments.rows import ModelRow, column, maybe
from talking_heads_utils.experiments.verdicts import rank_p
from talking_heads_utils.forward.layers import wide
from talking_heads_utils.labels import Component, Head, heads_in
from talking_heads_utils.prompts.sets import ABSENT
from talking_heads_utils.roles import S_INHIBITION
from talking_heads_utils.stats import bootstrap_ratio, middle

N_WINDOWS, N_POS = 800, 128  # 100,000 tokens
TOP_SHARE = 0.01  # of the positions, where a component is largest
FIRST_QUERY = 8  # tokens of a window before the first position that is asked about
N_CONTROLS, LAYERS_AWAY = 100, 2  # components matched to each; how far their layers may be
N_DRAWS = 999  # of as many heads, against which the mean over S-inhibition heads stands
N_CONTEXTS, WIDTH = 8, 24  # that are shown of each component; tokens of one
EVERY = 5  # one window in so many tells the components' write energy
SEEN, NAMED_TWICE, SAME_LIST, FIRST_TOKEN, IN_LIST = "seen", "named_twice", "same_list", "first_token", "in_list"
EARLIER, STRONGEST = "earlier", "strongest"  # every earlier token but the first; of these the one with most attention
MEAN, CONTROL = "mean", "control"


@dataclass(frozen=True)
class AttendsRow(ModelRow):
    """Where one component's head attends at the 1% of positions where the component's coefficient is largest.

    share: of the head's attention from there to earlier tokens, the first token left out. even: what attention spread
    evenly over the same tokens would give. ``first_token`` is of all attention and has no even share. ``in_list`` is of
    positions: how many of the largest stand in a list, and in ``even`` how many of all.
    """

    role: str = column("", "S-inhibition, mean (over the S-inhibition heads' components), control")
    component: str = column("", "the one of its head that weights predict; mean; a control")
    matched_to: str = column("", "of a control: the component whose layer and write energy it has nearly; else empty")
    target: str = column("", "seen (either of the next two), named_twice, same_list, first_token, in_list")
    share: float = column("share", "of attention to earlier tokens that goes to the target")
    even: float | None = maybe("share", "the same if attention were even")
    excess: float = column("share", "share less even")
    low: float | None = maybe("share", "lower end of the excess' 95% interval over sections; of controls none")
    high: float | None = maybe("share", "upper end")
    control: float | None = maybe("share", "mean excess of the matched components")
    control_low: float | None = maybe("share", "2.5th percentile of theirs")
    control_high: float | None = maybe("share", "97.5th percentile")
    p: float | None = maybe(
        "", "(1 + matched components with as large an excess) / (1 + all of them); of the mean, by draws of heads"
    )
    n_controls: int | None = maybe("components", "matched to it; of the mean, draws of as many other heads")
    n: int = column("positions", "where the coefficient is largest")
    n_sections: int = column("sections", "of the text that they stand in")
    texts: str = column("", "what the text is")


@dataclass(frozen=True)
class ContextRow(ModelRow):
    """One of the places in the text where a component's coefficient is largest, at most one a section."""

    component: str = column("", "of an S-inhibition head")
    before: str = column("", "text before the word attended to")
    attended: str = column("", "the earlier token that the head attends to most")
    between: str = column("", "text between it and the token")
    token: str = column("", "where the coefficient is so large")
    target: str = column("", "what the attended token is: same_list, named_twice, other")
    attention: float = column("share", "of attention to earlier tokens but the first, what goes to it")
    size: float = column("standard deviations", "of the coefficient, from zero")


@dataclass(frozen=True)
class TextRun:
    """One run over a text.

    own, controls: S-inhibition components, and those matched to each. values: coefficients of all of them. even: target
    -> share of the earlier tokens at every position that are targets. attention: of a head on a target, or on the
    earlier token it attends to most; looked_at: where that is.
    """

    text: Corpus
    own: Sequence[Component]
    controls: Mapping[Component, Sequence[Component]]
    values: Mapping[Component, Float[Tensor, "n_windows n_pos"]]
    even: Mapping[str, Float[Tensor, "n_windows n_pos"]]
    attention: Mapping[tuple[Head, str], Float[Tensor, "n_windows n_pos"]]
    looked_at: Mapping[Head, Int[Tensor, "n_windows n_pos"]]
    name: str


# --- what there is to attend to ---


def targets_in(text: Corpus) -> dict[str, Bool[Tensor, "n_windows n_pos n_pos"]]:
    """For every position (first dimension of the two) which earlier ones are what: :data:`EARLIER` all but the first;
    of these the content words that stand in the same list, or that have been named twice by then."""
    n_pos = text.tokens.shape[1]
    earlier = torch.ones(n_pos, n_pos).tril(-1).bool()
    earlier[:, 0] = False
    is_word = (text.word != ABSENT)[:, None] & earlier & (text.mention[:, :, None] != text.mention[:, None])
    begins = (text.word != ABSENT) & (text.mention != text.mention.roll(1, 1))
    same = (text.word[:, :, None] == text.word[:, None]) & begins[:, :, None]
    listed = (text.in_list != ABSENT)[:, :, None] & (text.in_list[:, :, None] == text.in_list[:, None])
    found = {NAMED_TWICE: is_word & (same.cumsum(1) > 1), SAME_LIST: is_word & listed}
    return {EARLIER: earlier.expand_as(is_word), SEEN: found[NAMED_TWICE] | found[SAME_LIST], **found}


# --- one run over the text ---


def text_run(c: Context) -> TextRun:
    """100,000 tokens of running text. Raises :class:`NotApplicable` for a model without S-inhibition heads."""
    own, n_windows = c.kept(predicted_components), c.n(N_WINDOWS)
    if c.text_source is None:
        texts, name = corpus.generated_texts(c.tokenizer, 4 * n_windows, c.seed), corpus.OWN_TEXTS
    else:
        texts, name = corpus.running_text(c.text_source), corpus.texts_shown_as(c.text_source)
    text = corpus.corpus_of(texts, c.tokenizer, n_pos=N_POS, n_windows=n_windows)
    return run_over(c, text, own, matched_controls(c, text[::EVERY], own), name)


def run_over(
    c: Context, text: Corpus, own: Sequence[Component], controls: Mapping[Component, Sequence[Component]], name: str
) -> TextRun:
    """Coefficients of the components and attention of their heads, everywhere."""
    components = list(dict.fromkeys([*own, *(other for others in controls.values() for other in others)]))
    read, own_heads = Coefficients.of(c.bridge, c.weights, components), {component.of_head for component in own}
    values, even, attention, looked_at = [], *(defaultdict[Any, list[Tensor]](list) for _ in range(3))
    for rows, cache in read.runs(c.bridge, text.tokens, also="hook_pattern"):
        values.append(read(cache))
        targets = targets_in(text[rows])
        for target, there in targets.items():
            even[target].append(there.sum(-1) / targets[EARLIER].sum(-1).clamp(min=1))
        for head in read.rows:
            pattern = wide(cache[f"blocks.{head.layer}.attn.hook_pattern"][:, head.head]).cpu()
            attention[head, FIRST_TOKEN].append(pattern[..., 0])
            for target, there in targets.items():
                attention[head, target].append((pattern * there).sum(-1))
            if head in own_heads:
                weight, key = (pattern * targets[EARLIER]).max(-1)
                attention[head, STRONGEST].append(weight)
                looked_at[head].append(key)
    parts = [{key: torch.cat(some) for key, some in found.items()} for found in (even, attention, looked_at)]
    coefficients = dict(zip(components, torch.cat(values).unbind(-1)))
    return TextRun(text, own, controls, coefficients, parts[0], parts[1], parts[2], name)


def matched_controls(c: Context, text: Corpus, own: Sequence[Component]) -> dict[Component, list[Component]]:
    """For each component :data:`N_CONTROLS` of other heads, at most :data:`LAYERS_AWAY` layers away, whose mean squared
    coefficient in the text is nearest to its own, as a ratio. No S-inhibition head is among them, and no head has more
    of them than it takes: components of one head look to the same places."""
    layers = sorted({
        layer for o in own for layer in range(o.layer - LAYERS_AWAY, o.layer + LAYERS_AWAY + 1)
        if 0 <= layer < c.bridge.cfg.n_layers
    })  # fmt: skip
    there = ~is_empty(write_directions(c.weights)[1])
    inhibit = set(c.roles.heads(S_INHIBITION))
    pool = [
        Component(head.layer, head.head, i)
        for head in heads_in(layers, c.weights.n_heads) if head not in inhibit
        for i in there[head.layer, head.head].nonzero().flatten().tolist()
    ]  # fmt: skip
    every, others = [*own, *pool], set(pool)
    read, square = Coefficients.of(c.bridge, c.weights, every), torch.zeros(len(every), dtype=torch.float64)
    for _, cache in read.runs(c.bridge, text.tokens):
        square += read(cache)[:, FIRST_QUERY:].double().square().sum((0, 1))
    found = {}
    for i, component in enumerate(own):
        near = {j for j, o in enumerate(every) if o in others and abs(o.layer - component.layer) <= LAYERS_AWAY}
        a_head = math.ceil(N_CONTROLS / max(1, len({every[j].of_head for j in near})))
        taken, chosen = Counter[Head](), list[Component]()
        for j in (square.log() - square[i].log()).abs().argsort(stable=True).tolist():
            if j in near and len(chosen) < N_CONTROLS and taken[every[j].of_head] < a_head:
                taken[every[j].of_head] += 1
                chosen.append(every[j])
        found[component] = chosen
    return found


# --- what it says ---


@dataclass(frozen=True)
class Found:
    """One component and target. above, below: of every section, what the excess is the ratio of."""

    share: float
    even: float | None
    above: Float[Tensor, "n_sections"]
    below: Float[Tensor, "n_sections"]

    @property
    def excess(self) -> float:
        return (self.above.sum() / self.below.sum()).item()


def largest(run: TextRun, component: Component) -> Int[Tensor, "n"]:
    """Positions, counted through all windows, where a component's coefficient is largest in size."""
    size = run.values[component].abs()
    size[:, :FIRST_QUERY] = -1.0
    return size.flatten().topk(max(1, int(TOP_SHARE * size[:, FIRST_QUERY:].numel()))).indices


def measured(run: TextRun, component: Component, target: str) -> Found:
    """Where a component's head attends from its :func:`largest` positions, or how many of them stand in a list."""
    top, head = largest(run, component), component.of_head
    if target == IN_LIST:
        listed = (run.text.in_list != ABSENT)[:, FIRST_QUERY:].double().mean().item()
        hit, weight = (run.text.in_list.flatten()[top] != ABSENT).double(), torch.ones(len(top), dtype=torch.float64)
        expected = torch.full_like(weight, listed)
    else:
        hit, even = run.attention[head, target].flatten()[top].double(), run.even.get(target)
        weight = torch.ones_like(hit) if even is None else run.attention[head, EARLIER].flatten()[top].double()
        expected = torch.zeros_like(hit) if even is None else weight * even.flatten()[top]
    above, below = (
        torch.zeros(int(run.text.section.max()) + 1, dtype=torch.float64).index_add_(
            0, run.text.section.flatten()[top], part
        )
        for part in (hit - expected, weight)
    )
    share, spread = hit.sum() / weight.sum(), expected.sum() / weight.sum()
    return Found(share.item(), None if target == FIRST_TOKEN else spread.item(), above, below)


def run(c: Context) -> list[AttendsRow]:
    """Rows of every S-inhibition component, of their mean, and of the components matched to them."""
    at = c.kept(text_run)
    return [row for target in (SEEN, NAMED_TWICE, SAME_LIST, FIRST_TOKEN, IN_LIST) for row in _rows(c, at, target)]


def _rows(c: Context, at: TextRun, target: str) -> list[AttendsRow]:
    own = {component: measured(at, component, target) for component in at.own}
    others = {o: measured(at, o, target) for o in dict.fromkeys(o for found in at.controls.values() for o in found)}
    rows = []
    for component, found in own.items():
        controls = [others[o] for o in at.controls[component]]
        drawn = torch.tensor([o.excess for o in controls], dtype=torch.float64)
        rows.append(_row(c, at, S_INHIBITION, [component], target, [found], drawn, rank_p(found.excess, drawn)))
        rows += [
            AttendsRow(c.model, CONTROL, str(name), str(component), target, o.share, even=o.even, excess=o.excess,
                       n=len(largest(at, name)), n_sections=int((o.below > 0).sum()), texts=at.name)
            for name, o in zip(at.controls[component], controls)
        ]  # fmt: skip
    by_head: dict[Head, list[float]] = {}
    for component, o in others.items():
        by_head.setdefault(component.of_head, []).append(o.excess)
    p, drawn = among_heads([o.excess for o in own.values()], list(by_head.values()), c.seed)
    return [*rows, _row(c, at, MEAN, at.own, target, list(own.values()), drawn, p)]


def among_heads(
    own: Sequence[float], others: Sequence[Sequence[float]], seed: int
) -> tuple[float, Float[Tensor, "n_draws"]]:
    """``(p, draws)``: how seldom as many heads at random have as large a mean, where some are ``own`` and of each other
    head one of its components stands for it. Components of one head look to the same places, so heads are what is
    drawn: :data:`N_DRAWS` times from all of them for p, and without the own ones for the draws."""
    generator, n = torch.Generator().manual_seed(seed), len(own)
    values = pad_sequence([torch.tensor(found, dtype=torch.float64) for found in others], batch_first=True)
    sizes = torch.tensor([len(found) for found in others])
    which = (torch.rand(N_DRAWS, len(others), generator=generator) * sizes).long()
    stands = values[torch.arange(len(others)), which]
    with_own = torch.cat([torch.tensor(own, dtype=torch.float64).expand(N_DRAWS, -1), stands], 1)
    means, without = (
        drawn.gather(1, torch.rand(drawn.shape, generator=generator).argsort(1)[:, :n]).mean(1)
        for drawn in (with_own, stands)
    )
    return drawn_test(sum(own) / n, means).p, without


def _row(
    c: Context, at: TextRun, role: str, components: Sequence[Component], target: str, found: Sequence[Found],
    controls: Float[Tensor, "n"], p: float,
) -> AttendsRow:  # fmt: skip
    """One component, or the mean over several."""
    above, below = (torch.stack([getattr(f, name) for f in found], 1) for name in ("above", "below"))
    excess, (low, high) = bootstrap_ratio(above, below, seed=c.seed), middle(controls)
    name = MEAN if role == MEAN else str(components[0])
    share, even = (sum(getattr(f, part) or 0.0 for f in found) / len(found) for part in ("share", "even"))
    return AttendsRow(
        c.model, role, name, "", target, share, even=None if found[0].even is None else even, excess=excess.mean,
        low=excess.low, high=excess.high, control=controls.mean().item(), control_low=low, control_high=high, p=p,
        n_controls=len(controls), n=sum(len(largest(at, component)) for component in components),
        n_sections=int((below.sum(1) > 0).sum()), texts=at.name,
    )  # fmt: skip


def contexts(c: Context) -> list[ContextRow]:
    """The :data:`N_CONTEXTS` largest positions of each S-inhibition component, at most one a section, with the token
    its head attends to most."""
    at, rows = c.kept(text_run), []
    for component in at.own:
        taken: set[int] = set()
        size = at.values[component]
        for where in largest(at, component).tolist():
            window, position = divmod(where, at.text.tokens.shape[1])
            section = int(at.text.section[window, position])
            if section in taken or len(taken) == N_CONTEXTS:
                continue
            taken.add(section)
            rows.append(_context(c, at, component, window, position, size[window, position] / size.std()))
    return rows


def _context(c: Context, at: TextRun, component: Component, window: int, position: int, size: Tensor) -> ContextRow:
    head, tokens = component.of_head, at.text.tokens[window].tolist()
    key = int(at.looked_at[head][window, position])
    targets = targets_in(at.text[window : window + 1])
    target = next((name for name in (SAME_LIST, NAMED_TWICE) if targets[name][0, position, key]), "other")
    begin = max(1, min(key - WIDTH // 2, position - WIDTH))
    pieces = (tokens[begin:key], tokens[key : key + 1], tokens[key + 1 : position], tokens[position : position + 1])
    before, attended, between, token = (c.tokenizer.decode(piece) for piece in pieces)
    share = at.attention[head, STRONGEST][window, position] / at.attention[head, EARLIER][window, position]
    return ContextRow(c.model, str(component), before, attended, between, token, target, share.item(), size.item())
