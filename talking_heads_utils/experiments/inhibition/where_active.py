"""Where in running text the strongest component of each inhibition head is active."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from talking_heads_utils.experiments import corpus
from talking_heads_utils.experiments.context import Context
from talking_heads_utils.experiments.inhibition.mover import MoverRuns, mover_runs
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.labels import Component, heads_in

N_CONTROL = 6  # random other heads


@dataclass(frozen=True)
class ActivityRow(Row):
    """Of a component's most active positions in a text, how many are of one category."""

    model: str = column("", "name of the model")
    inhibition: bool = column("", "whether it is an inhibition head's; else of a random earlier head")
    component: str = column("", "the strongest of its head, or the first of a random head")
    category: str = column("", "comma in a list, repeated word, or other")
    share: float = column("share of positions", "of the category among the most active positions")
    base: float = column("share of positions", "of the category in the text")
    ratio: float = column("", "the first over the second")
    n: int = column("positions", "the most active ones")
    texts: str = column("", "what the text is")


def run(c: Context) -> list[ActivityRow]:
    """Rows of every inhibition head's strongest component, and of the first components of random other heads. Raises
    :class:`NotApplicable` for a model without inhibition heads."""
    if c.text_source is None:
        texts, name = corpus.generated_texts(c.tokenizer, 400, c.seed)[: c.n(2000)], corpus.OWN_TEXTS
    else:
        texts, name = corpus.running_text(c.text_source, c.n(2000)), corpus.texts_shown_as(c.text_source)
    at = c.kept(mover_runs)
    text = corpus.corpus_of(texts, c.tokenizer)
    chosen, control = list(at.best_of_each_head().values()), other_components(at, c.seed)
    active = corpus.activity(c.bridge, at.held_out.directions, text, [*chosen, *control])
    table = corpus.rates(active, text, [*chosen, *control])
    own = set(map(str, chosen))
    return [
        ActivityRow(c.model, r["component"] in own, r["component"], r["category"], r["share"], r["base"], r["ratio"],
                    r["n"], name)
        for r in table.to_dict("records")
    ]  # fmt: skip


def other_components(at: MoverRuns, seed: int, n: int = N_CONTROL) -> list[Component]:
    """The first components of random earlier heads that inhibit nothing."""
    earlier = heads_in(range(at.mover.layer), at.held_out.weights.n_heads)
    others = [head for head in earlier if head not in at.heads]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    return [Component(others[i].layer, others[i].head, 0) for i in order]
