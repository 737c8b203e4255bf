"""Is the task done in parts? What each layer is worth, what can be read where, and what looks at earlier answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils.errors import NotApplicable, OptionError
from talking_heads_utils.experiments.icl.ablations import NOTHING, ablations
from talking_heads_utils.experiments.icl.clusters import mean_in_clusters
from talking_heads_utils.experiments.icl.redundancy import Reader
from talking_heads_utils.experiments.icl.scores import score_answers
from talking_heads_utils.experiments.rows import Row, column
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.questions import asked_at
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import share_in_clusters

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ATTENTION, MLP = "attention", "mlp"
RIDGE = 1e-2  # of the mean square of a feature


# --- layers taken out ---


@dataclass(frozen=True)
class PartRow(Row):
    """What is left of each score with one layer's attention or MLP out at the last token."""

    task: str = column("", "what the model is asked")
    part: str = column("", "what is out: attention, mlp or nothing")
    layer: int | None = column("", "of which layer; none with nothing out")
    exact: float = column("share", "right answers, among the task's answers")
    low: float = column("share", "lower end of exact, 95% over functions or answers")
    high: float = column("share", "upper end of exact")
    near: float | None = column("share", "answers at most 3 from the right one; none of words")
    near_low: float | None = column("share", "lower end of near")
    near_high: float | None = column("share", "upper end of near")
    parity: float | None = column("share", "answers of the right parity; none of words")
    parity_low: float | None = column("share", "lower end of parity")
    parity_high: float | None = column("share", "upper end of parity")
    parity_copied: float | None = column("share", "right parities of answers copied from an example of the prompt")
    distance: float | None = column("", "distance of the answer from the right one, mean; none of words")
    n: int = column("", "prompts")


def layers_out(reader: Reader, prompts: PromptSet, *, task: str = "") -> list[PartRow]:
    """Exact and, of numbers, near answers and right parities, without each layer's attention or MLP at ``end``."""
    n_layers = reader.shape[0]
    heads = {f"{ATTENTION} {layer}": heads_in([layer], reader.shape[1]) for layer in range(n_layers)}
    mlps = {f"{MLP} {layer}": [layer] for layer in range(n_layers)} if reader.ends.layers[0].mlp else {}
    chosen = ablations(reader.shape, heads, mlps)
    scores = score_answers(reader.answers.read(reader.run(chosen)), prompts)
    rows = []
    for i, name in enumerate(chosen.names):
        exact = share_in_clusters(scores.exact[:, i], reader.clusters)
        near, parity = (_shares(hits, i, reader.clusters) for hits in (scores.near, scores.parity))
        part, _, layer = name.partition(" ")
        distance = None if scores.distance is None else scores.distance[:, i].double().mean().item()
        rows.append(PartRow(task, part, int(layer) if name != NOTHING else None, *exact[:3], *near, *parity,
                            parity_of_copies(prompts), distance, len(prompts)))  # fmt: skip
    return rows


def _shares(
    hits: Bool[Tensor, "n n_sets"] | None, i: int, clusters: Int[Tensor, "n"]
) -> tuple[float | None, float | None, float | None]:
    """Share of one set's hits and its interval, each None where there are no hits to tell."""
    return (None, None, None) if hits is None else share_in_clusters(hits[:, i], clusters)[:3]


def parity_of_copies(prompts: PromptSet) -> float | None:
    """Share of prompts in which an answer copied from an example of the same function has the right parity.

    Where a is even all answers a x + b of a function share their parity; where it is odd, half of them do.
    None for words.
    """
    if "a" not in prompts.info:
        return None
    even = torch.tensor(list(prompts.info["a"])) % 2 == 0
    return torch.where(even, 1.0, 0.5).mean().item()


# --- probes ---


@dataclass(frozen=True)
class ProbeRow(Row):
    """What a linear probe of the residual stream at the last token tells of functions that it was not fitted on."""

    label: str = column("", "a, b, the parity of the answer, or its size in four equal parts")
    layer: int = column("", "whose resid_pre is probed; the number of layers for the final stream")
    right: float = column("share", "labels told")
    low: float = column("share", "lower end of right, 95% over functions")
    high: float = column("share", "upper end of right")
    shuffled: float = column("share", "the same on labels dealt anew to functions or prompts, mean of several deals")
    selectivity: float = column("share", "right less shuffled")
    n: int = column("", "prompts that are scored")
    n_functions: int = column("", "functions that they are of")


def probe(
    features: Float[Tensor, "n d_model"], labels: Int[Tensor, "n"], fitted: Bool[Tensor, "n"]
) -> Bool[Tensor, "n_scored"]:
    """Whether a ridge classifier fitted on some prompts tells the label of each of the others.

    Raises :class:`OptionError` if a part is empty or the fitted part has one label alone.
    """
    if not fitted.any() or fitted.all() or len(labels[fitted].unique()) < 2:
        raise OptionError(
            "A probe needs prompts to be fitted on, with two labels at least, and others to be scored on."
        )
    from sklearn.linear_model import RidgeClassifier

    x, asked, known = features.double().cpu().numpy(), labels.cpu().numpy(), fitted.cpu().numpy()
    penalty = RIDGE * known.sum() * x[known].var(0).mean() + 1e-9
    told = RidgeClassifier(penalty).fit(x[known], asked[known]).predict(x[~known])
    return torch.from_numpy(told == asked[~known])


def probe_labels(prompts: PromptSet) -> dict[str, Int[Tensor, "n"]]:
    """What probes ask for: a, b, the parity of the answer, and its size in four equal parts. Raises
    :class:`NotApplicable` for words, which have none of them."""
    if "a" not in prompts.info:
        raise NotApplicable("Only functions of numbers have labels that probes ask for; this model is asked for words.")
    a, b, answer = (torch.tensor(list(prompts.info[name])) for name in ("a", "b", "answer"))
    edges = torch.quantile(answer.double(), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return {"a": a, "b": b, "parity": answer % 2, "size": torch.bucketize(answer.double(), edges)}


def probes(
    resid: Float[Tensor, "n n_layers_1 d_model"], prompts: PromptSet, *, seed: int = 0, n_shuffles: int = 5
) -> list[ProbeRow]:
    """Linear probes by label and layer. No function is both fitted and scored."""
    generator, asked = torch.Generator().manual_seed(seed), probe_labels(prompts)
    function = torch.tensor([1000 * a + b for a, b in zip(prompts.info["a"], prompts.info["b"])])
    kinds = function.unique()
    chosen = kinds[torch.randperm(len(kinds), generator=generator)[: len(kinds) * 2 // 3]]
    fitted = torch.isin(function, chosen)
    rows = []
    for name, labels in asked.items():
        deals = [_dealt(labels, function if name in "ab" else None, generator) for _ in range(n_shuffles)]
        for layer in range(resid.shape[1]):
            found = share_in_clusters(probe(resid[:, layer], labels, fitted), function[~fitted])
            shuffled = torch.stack([probe(resid[:, layer], deal, fitted) for deal in deals]).double().mean().item()
            rows.append(ProbeRow(name, layer, *found[:3], shuffled, found.mean - shuffled, found.n,
                                 len(kinds) - len(chosen)))  # fmt: skip
    return rows


def _dealt(labels: Tensor, function: Tensor | None, generator: torch.Generator) -> Tensor:
    """Labels dealt anew: to prompts, or, so that a function keeps one label, to functions."""
    if function is None:
        return labels[torch.randperm(len(labels), generator=generator)]
    kinds, which = function.unique(return_inverse=True)
    of_kind = torch.stack([labels[function == kind][0] for kind in kinds])
    return of_kind[torch.randperm(len(kinds), generator=generator)][which]


# --- attention to earlier answers ---


@dataclass(frozen=True)
class LooksBackRow(Row):
    """Where one head looks from the tokens before answers."""

    task: str = column("", "what the model is asked")
    head: str = column("", "head")
    to_y: float = column("share", "attention to all earlier answers from the token before each answer, mean")
    low: float = column("share", "lower end of to_y, 95% over functions or answers")
    high: float = column("share", "upper end of to_y")
    to_x: float = column("share", "the same to all earlier x")
    even: float = column("share", "what attention spread evenly over all earlier tokens would give earlier answers")
    ratio: float = column("", "to_y over even")
    n: int = column("", "prompts")


@torch.no_grad()
def attention_to_answers(
    bridge: TransformerBridge, prompts: PromptSet, clusters: Int[Tensor, "n"], *, task: str = ""
) -> list[LooksBackRow]:
    """Where the token before each y_j (j >= 1) and the question's look."""
    n_layers, n_heads = bridge.cfg.n_layers, bridge.cfg.n_heads
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(n_layers)]
    _, cache = bridge.run_with_cache(prompts.tokens.to(bridge.cfg.device), names_filter=lambda name: name in names)
    asked = asked_at(prompts)[1:]
    even = torch.stack([(j + 1) / (at + 1) for j, at in enumerate(asked)]).mean().item()
    to = {kind: torch.stack([_given(cache[name].float().cpu(), prompts, asked, kind) for name in names], 1)
          for kind in "yx"}  # fmt: skip
    found, to_x = mean_in_clusters(to["y"], clusters), to["x"].mean(0)
    return [
        LooksBackRow(task, str(Head(*at)), found.value[at].item(), found.low[at].item(), found.high[at].item(),
                     to_x[at].item(), even, found.value[at].item() / even, len(prompts))
        for at in ((layer, head) for layer in range(n_layers) for head in range(n_heads))
    ]  # fmt: skip


def _given(
    pattern: Float[Tensor, "n n_heads n_pos n_pos"], prompts: PromptSet, asked: Sequence[Int[Tensor, "n"]], kind: str
) -> Float[Tensor, "n n_heads"]:
    """Attention from each asked token to all earlier examples' x or y, mean over the asked tokens."""
    rows, total = torch.arange(len(prompts)), torch.zeros(pattern.shape[:2])
    for j, at in enumerate(asked, 1):
        for i in range(j):
            total += pattern[rows, :, at, prompts.positions[f"{kind}_{i}"]] / len(asked)
    return total
