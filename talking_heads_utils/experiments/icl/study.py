"""Chapter 4's experiments on one model: what a page asks for, as tables. Everything random comes from the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from talking_heads_utils.errors import TaskError
from talking_heads_utils.experiments.icl import additivity, curves, parts, redundancy
from talking_heads_utils.experiments.icl.bayes import bayes_accuracy
from talking_heads_utils.experiments.icl.pairing import POST_PAIRS, RANDOM_PAIRS, post_questions, questions
from talking_heads_utils.experiments.icl.redundancy import Reader
from talking_heads_utils.experiments.icl.scores import NumberScores, score_numbers
from talking_heads_utils.experiments.icl.subject import CHOOSES, FUNCTIONS, N_EXAMPLES, Subject, WordSubject, subject
from talking_heads_utils.forward.end_runs import RESID, EndRun, patch_grid, replacements, run_end
from talking_heads_utils.forward.head_sets import NOTHING, ZERO, Ablations, ablations, random_heads
from talking_heads_utils.forward.suffix import suffix
from talking_heads_utils.labels import Head, heads_in
from talking_heads_utils.prompts.functions import Examples
from talking_heads_utils.prompts.lists import HELD_OUT, SELECTION
from talking_heads_utils.prompts.questions import numbers_of
from talking_heads_utils.prompts.sets import PromptSet
from talking_heads_utils.stats import share, share_in_clusters

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FUNCTIONS", "N_EXAMPLES", "NOTHING", "Subject", "WordSubject", "numbers_of", "subject"]
MANY, MOST_OUT = 100, 24


def accuracy_table(s: Subject, n: int = 200) -> pd.DataFrame:
    """Accuracy after k examples: the model's, on trained and held-out functions, and the exact reader's.

    Columns ``model, functions, k, model_accuracy, low, high, reader, n`` (95% intervals over functions, whose prompts
    are alike). The reader knows which functions were trained (trained) or holds all equally likely (held-out).
    Of a task of words: among its answers, on pairs of either half, with the task's name and no reader.
    """
    import pandas as pd

    if isinstance(s, WordSubject):
        return _words_accuracy(s, n)
    uniform = torch.full_like(s.prior, 1 / len(s.prior))
    rows = []
    for functions, held_out, prior in (("trained", False, s.prior), ("held out", True, uniform)):
        if held_out and not s.functions.held_out.any():
            continue
        examples = s.examples(n, N_EXAMPLES + 1, held_out=held_out, part=1)
        answered = _answers_along(s, examples)
        exact = bayes_accuracy(s.functions, examples, prior).mean(0)
        for k in range(N_EXAMPLES + 1):
            found = share_in_clusters(answered[:, k] == examples.clean[:, k], examples.function)
            rows.append(dict(model=s.name, functions=functions, k=k, model_accuracy=found.mean, low=found.low,
                             high=found.high, reader=exact[k].item(), n=found.n))  # fmt: skip
    return pd.DataFrame(rows)


def _words_accuracy(s: WordSubject, n: int) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for half in (SELECTION, HELD_OUT):
        drawn = s.questions(n, part=1, half=half)
        right = s.relation.right(drawn)
        answered = s.numbers.read(curves.asked_logits(s.bridge, s.encode(drawn), s.numbers))
        for k in range(N_EXAMPLES + 1):
            found = share_in_clusters(answered[:, k] == right[:, k], right[:, k])
            rows.append(dict(functions=f"{half} pairs", k=k, model_accuracy=found.mean, low=found.low, high=found.high,
                             reader=torch.nan, n=found.n))  # fmt: skip
    return s.marked(pd.DataFrame(rows))


def _answers_along(s: Subject, examples: Examples) -> Tensor:
    """The number answered at every pair of each list, after those before it."""
    prompts = s.encode(questions(examples, s.functions))
    return s.numbers.read(curves.asked_logits(s.bridge, prompts, s.numbers))


def layer_sets(s: Subject) -> dict[str, list[Head]]:
    """Each layer's heads, and the first two layers' together: what the post takes out, in proportion."""
    n_layers = s.shape[0]
    sets = {f"heads of layer {layer}": heads_in([layer], s.shape[1]) for layer in range(n_layers)}
    pair = [n_layers // 3, n_layers // 3 + 1]
    return sets | {f"heads of layers {pair[0]} and {pair[1]}": heads_in(pair, s.shape[1])}


def patch_table(
    s: Subject,
    sets: Mapping[str, Sequence[Head]],
    *,
    n: int = 64,
    b: str = RANDOM_PAIRS,
    what: str = RESID,
    how: str = ZERO,
) -> pd.DataFrame:
    """A's last token patched into B's at every layer, for every ablation of A: columns ``set, layer, exact, low, high,
    about, parity, copied, distance, n``.

    Layer -1 is A itself, scored on its own question; layer -2 is B with nothing patched. Patched answers are scored on
    A's function at B's x; copied: the answer is the one that A, with the same heads out, gives to its own question.
    Of words, exact and copied answers alone are scored; the other columns are NaN.
    """
    pairing, as_a = s.pairing(n, b)
    a, other, asked = s.encode(pairing.a), s.encode(pairing.b), s.encode(as_a)
    ends_a, ends_b = suffix(s.bridge, a, 0), suffix(s.bridge, other, 0)
    chosen = ablations(s.shape, dict(sets))
    run = run_end(ends_a, chosen, replacements(run_end(ends_a), how, seed=s.seed))
    grid = patch_grid(run, ends_a, ends_b, s.numbers.ids.to(s.bridge.cfg.device), what=what)
    said, unpatched = s.numbers.read(grid.own), s.numbers.read(grid.plain)[:, None]
    found = score_numbers(s.numbers.read(grid.patched), asked, said[:, None])
    own, plain = score_numbers(said, a, said), score_numbers(unpatched.expand_as(said), asked, said)
    table = _patch_rows(chosen, found, own, plain)
    return s.marked(table) if isinstance(s, WordSubject) else table


# of Llama-3-8B, as the post took them out
POST_HEADS = ("L10H5", "L10H7", "L13H6", "L13H27", "L14H18")
POST_LAYERS = ((10, 11), (10, 11, 13), (10, 11, 13, 15))


def post_sets(s: Subject) -> dict[str, list[Head]]:
    """The sets that the post took out, where the model has Llama-3-8B's shape; :func:`layer_sets` for any other."""
    if s.shape != (32, 32):
        return layer_sets(s)
    five = {"five heads": [Head.parse(name) for name in POST_HEADS]}
    return five | {f"layers {', '.join(map(str, some))}": heads_in(some, s.shape[1]) for some in POST_LAYERS}


def post_table(s: Subject) -> pd.DataFrame:
    """The post's own two prompts, with the plain run that it lacks: columns ``out of A, A's top five, B plain``, then
    one per layer with the number that B answers when A's ``resid_pre`` of that layer is patched in.

    Raises :class:`TaskError` if the tokenizer does not keep the post's numbers whole.
    """
    import pandas as pd

    if isinstance(s, WordSubject):
        raise TaskError(
            "The post's two prompts ask for a number of one token, and this tokenizer splits numbers: see how well the "
            "model does y = a x + b by whole answers instead."
        )
    a, b = ([question] for question in post_questions())
    numbers = numbers_of(s.tokenizer, max(y for _, y in POST_PAIRS) + 9)
    ends_a, ends_b = (suffix(s.bridge, s.encode(some), 0) for some in (a, b))
    chosen = ablations(s.shape, post_sets(s))
    run = run_end(ends_a, chosen, replacements(run_end(ends_a), ZERO))
    grid = patch_grid(run, ends_a, ends_b, numbers.ids.to(s.bridge.cfg.device))
    best = numbers.values[grid.own[0].topk(5).indices.cpu()]
    answers, plain = numbers.read(grid.patched)[0], int(numbers.read(grid.plain)[0])
    rows = [
        {"out of A": name, "A's top five": " ".join(map(str, best[i].tolist())), "B plain": plain}
        | {str(layer): int(answers[layer, i]) for layer in range(s.shape[0])}
        for i, name in enumerate(chosen.names)
    ]
    return pd.DataFrame(rows)


def _patch_rows(chosen: Ablations, found: NumberScores, own: NumberScores, plain: NumberScores) -> pd.DataFrame:
    import pandas as pd

    rows = []

    def add(name: str, layer: int, scores: NumberScores, at: tuple) -> None:
        exact = share(scores.exact[at])
        kinds = {key: getattr(scores, key) for key in ("about", "parity", "copied", "distance")}
        rest = {key: torch.nan if of is None else of[at].double().mean().item() for key, of in kinds.items()}
        rows.append(dict(set=name, layer=layer, exact=exact.mean, low=exact.low, high=exact.high, **rest, n=exact.n))

    every = slice(None)
    for i, name in enumerate(chosen.names):
        add(name, -2, plain, (every, i))
        add(name, -1, own, (every, i))
        for layer in range(found.exact.shape[1]):
            add(name, layer, found, (every, layer, i))
    return pd.DataFrame(rows)


def first_working_layer(table: pd.DataFrame, share: float = 0.5) -> dict[str, int | None]:
    """For each set the first layer at which a patch gives A's function at B's x in ``share`` of the prompts or more."""
    found = {}
    for name, part in table[table["layer"] >= 0].groupby("set", sort=False):
        reached = part[part["exact"] >= share]["layer"]
        found[name] = int(reached.iloc[0]) if len(reached) else None
    return found


def reader(s: Subject, n: int, *, part: int, how: str = ZERO) -> tuple[Reader, PromptSet]:
    """Prompts of their own, ready to be asked with heads out at the last token."""
    prompts = s.prompts(n, part=part)
    ends = suffix(s.bridge, prompts, 0)
    instead = replacements(run_end(ends), how, seed=s.seed)
    return Reader(ends, s.numbers, torch.tensor(list(prompts.info["answer"])), instead), prompts


def removal_table(
    s: Subject, *, n: int = 64, n_random: int = 5, how: str = ZERO, most: int | None = None
) -> pd.DataFrame:
    """Accuracy and log-probability as heads go: columns ``order, out, head, exact, low, high, log_prob, n``.

    most: heads to take out, by default all but one, or :data:`MOST_OUT` of a model of more than :data:`MANY`. The
    order by effect is chosen on other prompts than score it, half as many of such a model; random orders beside it.
    """
    import pandas as pd

    many = s.shape[0] * s.shape[1] > MANY
    select, score = (reader(s, k, part=part, how=how)[0] for part, k in ((CHOOSES, n // 2 if many else n), (3, n)))
    n_heads = most or (MOST_OUT if many else len(select.heads) - 1)
    runs = {"by effect": redundancy.remove_by_effect(select, score, n_heads)}
    runs |= {f"random {i + 1}": redundancy.remove_at_random(score, n_heads, s.seed + i) for i in range(n_random)}
    rows = []
    for order, run in runs.items():
        for out in range(n_heads + 1):
            found = share(run.exact[:, out].bool())
            head = str(run.order[out - 1]) if out else NOTHING
            rows.append(dict(order=order, out=out, head=head, exact=found.mean, low=found.low, high=found.high,
                             log_prob=run.log_prob[:, out].mean().item(), n=found.n))  # fmt: skip
    return s.marked(pd.DataFrame(rows)) if isinstance(s, WordSubject) else pd.DataFrame(rows)


def strongest(s: Subject, k: int, *, n: int = 64) -> list[Head]:
    """The heads whose loss alone costs most, on the selection prompts."""
    select, _ = reader(s, n, part=CHOOSES)
    worth = redundancy.effects(select, [[head] for head in select.heads]).mean(0)
    return [select.heads[i] for i in worth.argsort(descending=True)[:k].tolist()]


def others(s: Subject, heads: Sequence[Head]) -> list[Head]:
    """As many heads as these, drawn at random from the rest of the model."""
    rest = [head for head in heads_in(range(s.shape[0]), s.shape[1]) if head not in heads]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(s.seed))
    return [rest[i] for i in order[: len(heads)].tolist()]


def random_sets(s: Subject, like: Sequence[Head], n_sets: int) -> dict[str, list[Head]]:
    """:func:`talking_heads_utils.forward.head_sets.random_heads` of this model and seed."""
    return random_heads(s.shape, like, n_sets, s.seed)


def interaction_table(s: Subject, heads: Sequence[Head], *, n: int = 64) -> pd.DataFrame:
    """:func:`talking_heads_utils.experiments.icl.redundancy.pair_interactions` on prompts that chose nothing."""
    score, _ = reader(s, n, part=3)
    return s.marked(redundancy.pair_interactions(score, heads))


def compensation_table(s: Subject, sets: Mapping[str, Sequence[Head]], *, n: int = 64) -> pd.DataFrame:
    """:func:`talking_heads_utils.experiments.icl.redundancy.compensation` on prompts that chose nothing."""
    score, _ = reader(s, n, part=3)
    chosen = ablations(s.shape, dict(sets))
    run: EndRun = run_end(score.ends, chosen, score.instead)
    return s.marked(redundancy.compensation(run, score.ends, chosen))


@dataclass(frozen=True)
class Belief:
    """Log-odds of the right answer after k examples, per prompt: the model's and those of readers of each trust; of a
    task of words there are none."""

    model: Float[Tensor, "n n_examples"]
    readers: Float[Tensor, "n_trusts n n_examples"] | None


def belief(s: Subject, *, n: int = 200) -> Belief:
    """What the model and exact readers believe along the same lists of examples."""
    if isinstance(s, WordSubject):
        drawn = s.questions(n, part=4)
        right = s.relation.right(drawn)[:, :-1]
        return Belief(curves.model_log_odds(s.bridge, s.encode(drawn), s.numbers, right), None)
    examples = s.examples(n, N_EXAMPLES + 1, part=4)
    prompts = s.encode(questions(examples, s.functions))
    return Belief(
        curves.model_log_odds(s.bridge, prompts, s.numbers, examples.clean[:, :-1]),
        curves.trusting_readers(s.functions, examples, s.prior)[..., :-1],
    )


def additivity_table(s: Subject, *, n: int = 48, counts: Sequence[int] = (1, 2, 3, 4, 6, 8, 12)) -> pd.DataFrame:
    """:func:`talking_heads_utils.experiments.icl.additivity.additivity_table` on fresh questions."""
    asked = s.questions(n, part=5)
    return s.marked(additivity.additivity_table(s.bridge, s.encode, asked, s.numbers, counts))


def layer_table(s: Subject, *, n: int = 100) -> pd.DataFrame:
    """:func:`talking_heads_utils.experiments.icl.parts.layer_table` on fresh prompts."""
    score, prompts = reader(s, n, part=6)
    return s.marked(parts.layer_table(score, prompts))


def probe_table(s: Subject, *, n: int = 600) -> pd.DataFrame:
    """:func:`~experiments.icl.parts.probe_table` on fresh prompts. Raises :class:`TaskError` for words."""
    prompts = s.encode(questions(s.examples(n, N_EXAMPLES + 1, part=7), s.functions))
    run = run_end(suffix(s.bridge, prompts, 0))
    return s.marked(parts.probe_table(run.resid[:, 0], prompts, seed=s.seed))


def attention_table(s: Subject, *, n: int = 48) -> pd.DataFrame:
    """:func:`talking_heads_utils.experiments.icl.parts.attention_to_answers` on fresh prompts."""
    return s.marked(parts.attention_to_answers(s.bridge, s.prompts(n, part=8), range(s.shape[0])))
