"""Is the task done in parts? What each layer is worth, what can be read where, and what looks at earlier answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.redundancy import Reader
from talking_heads_utils.experiments.icl.scores import score_numbers
from talking_heads_utils.forward.head_sets import ablations
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.questions import asked_at
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import Interval, bootstrap_mean, share, share_in_clusters

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

ATTENTION, MLP = "attention", "MLP"
RIDGE = 1e-2


def layer_table(reader: Reader, prompts: PromptSet) -> pd.DataFrame:
    """What is left of each score with one layer's attention or MLP out at ``end``.

    Columns ``part, layer, exact, low, high, near, near_low, near_high, parity, parity_low, parity_high, parity_copied,
    distance, n`` (shares with 95% intervals over prompts; distance: mean). parity_copied: the share of right parities
    that an answer copied from an earlier example would have, see :func:`parity_of_copies`. The plain run is part
    ``nothing``. Of words, exact answers alone are scored; the other columns are NaN.
    """
    import pandas as pd

    n_layers = reader.shape[0]
    heads = {f"{ATTENTION} {layer}": heads_in([layer], reader.shape[1]) for layer in range(n_layers)}
    mlps = {f"{MLP} {layer}": [layer] for layer in range(n_layers)} if reader.ends.layers[0].mlp else {}
    chosen = ablations(reader.shape, heads, mlps)
    scores = score_numbers(reader.numbers.read(reader.run(chosen)), prompts)
    rows = []
    for i, name in enumerate(chosen.names):
        part, _, layer = name.partition(" ")
        exact, near, parity = (_share(hits, i) for hits in (scores.exact, scores.near, scores.parity))
        distance = torch.nan if scores.distance is None else scores.distance[:, i].double().mean().item()
        rows.append(
            dict(part=part, layer=int(layer) if layer else None, exact=exact.mean, low=exact.low, high=exact.high,
                 near=near.mean, near_low=near.low, near_high=near.high, parity=parity.mean, parity_low=parity.low,
                 parity_high=parity.high, distance=distance, n=exact.n)
        )  # fmt: skip
    return pd.DataFrame(rows).assign(parity_copied=parity_of_copies(prompts))


def _share(hits: Bool[Tensor, "n n_sets"] | None, i: int) -> Interval:
    return Interval(torch.nan, torch.nan, torch.nan, 0) if hits is None else share(hits[:, i])


def parity_of_copies(prompts: PromptSet) -> float:
    """Share of prompts in which an answer copied from an example of the same function has the right parity.

    Where a is even all answers a x + b of a function share their parity; where it is odd, half of them do.
    NaN for words.
    """
    if "a" not in prompts.info:
        return torch.nan
    even = torch.tensor(list(prompts.info["a"])) % 2 == 0
    return torch.where(even, 1.0, 0.5).mean().item()


def probe(
    features: Float[Tensor, "n d_model"],
    labels: Int[Tensor, "n"],
    fitted: Bool[Tensor, "n"],
) -> Bool[Tensor, "n_scored"]:
    """Whether a ridge classifier fitted on some prompts tells the label of each of the others.

    Raises :class:`OptionError` if a part is empty or the fitted part has one label alone.
    """
    if not fitted.any() or fitted.all() or len(labels[fitted].unique()) < 2:
        raise OptionError(
            "A probe needs prompts to be fitted on, with two labels at least, and others to be scored on."
        )
    x = features.double().cpu()
    x = x - x[fitted].mean(0)
    kinds = labels[fitted].unique()
    y = (labels[fitted][:, None] == kinds).double()
    center = y.mean(0)
    gram = x[fitted].T @ x[fitted]
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + 1e-9)
    weights = torch.linalg.solve(gram, x[fitted].T @ (y - center))
    guessed = kinds[(x[~fitted] @ weights + center).argmax(1)]
    return guessed == labels[~fitted]


def probe_labels(prompts: PromptSet) -> dict[str, Int[Tensor, "n"]]:
    """What probes ask for: a, b, the parity of the answer, and its size in four equal parts."""
    a, b, answer = (torch.tensor(list(prompts.info[name])) for name in ("a", "b", "answer"))
    edges = torch.quantile(answer.double(), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return {"a": a, "b": b, "parity": answer % 2, "size": torch.bucketize(answer.double(), edges)}


def probe_table(
    resid: Float[Tensor, "n n_layers_1 d_model"], prompts: PromptSet, *, seed: int = 0, n_shuffles: int = 5
) -> pd.DataFrame:
    """Linear probes of the residual stream at ``end``, by layer: columns ``label, layer, right, low, high, shuffled,
    selectivity, n, functions`` (95% intervals over the ``functions`` that are scored, whose prompts are alike).

    Split by function: no function is both fitted and scored. shuffled: the same probe on labels that are dealt anew
    to functions (a, b) or to prompts (parity, size), mean of several deals: what a probe learns of anything at all.
    """
    import pandas as pd

    generator = torch.Generator().manual_seed(seed)
    function = torch.tensor([1000 * a + b for a, b in zip(prompts.info["a"], prompts.info["b"])])
    kinds = function.unique()
    chosen = kinds[torch.randperm(len(kinds), generator=generator)[: len(kinds) * 2 // 3]]
    fitted = torch.isin(function, chosen)
    rows = []
    for name, labels in probe_labels(prompts).items():
        deals = [_dealt(labels, function if name in "ab" else None, generator) for _ in range(n_shuffles)]
        for layer in range(resid.shape[1]):
            found = share_in_clusters(probe(resid[:, layer], labels, fitted), function[~fitted])
            shuffled = torch.stack([probe(resid[:, layer], deal, fitted) for deal in deals]).double().mean().item()
            rows.append(
                dict(label=name, layer=layer, right=found.mean, low=found.low, high=found.high, shuffled=shuffled,
                     selectivity=found.mean - shuffled, n=found.n, functions=len(kinds) - len(chosen))
            )  # fmt: skip
    return pd.DataFrame(rows)


def _dealt(labels: Tensor, function: Tensor | None, generator: torch.Generator) -> Tensor:
    """Labels dealt anew: to prompts, or, so that a function keeps one label, to functions."""
    if function is None:
        return labels[torch.randperm(len(labels), generator=generator)]
    kinds, which = function.unique(return_inverse=True)
    of_kind = torch.stack([labels[function == kind][0] for kind in kinds])
    return of_kind[torch.randperm(len(kinds), generator=generator)][which]


@torch.no_grad()
def attention_to_answers(bridge: TransformerBridge, prompts: PromptSet, layers: range) -> pd.DataFrame:
    """Where the token before each y_j (j >= 1) and the question's look: columns ``head, to_y, to_x, even, ratio, n``.

    to_y, to_x: attention to all earlier y_i and x_i, mean over j and prompts. even: what attention spread evenly over
    all earlier tokens would give y. ratio: to_y over even. low, high: of to_y, 95% over prompts.
    """
    import pandas as pd

    names = {f"blocks.{layer}.attn.hook_pattern": layer for layer in layers}
    _, cache = bridge.run_with_cache(prompts.tokens.to(bridge.cfg.device), names_filter=lambda name: name in names)
    rows, asked = torch.arange(len(prompts)), asked_at(prompts)[1:]
    even = torch.stack([(j + 1) / (at + 1) for j, at in enumerate(asked)]).mean().item()
    table = []
    for name, layer in names.items():
        pattern = cache[name].float().cpu()
        to = {kind: torch.zeros(len(prompts), pattern.shape[1]) for kind in "yx"}
        for j, at in enumerate(asked, 1):
            for kind, total in to.items():
                for i in range(j):
                    total += pattern[rows, :, at, prompts.positions[f"{kind}_{i}"]] / len(asked)
        for head in range(pattern.shape[1]):
            found = bootstrap_mean(to["y"][:, head], n_boot=1000)
            table.append(
                dict(head=str(Head(layer, head)), to_y=found.mean, low=found.low, high=found.high,
                     to_x=to["x"][:, head].mean().item(), even=even, ratio=found.mean / even, n=found.n)
            )  # fmt: skip
    return pd.DataFrame(table)
