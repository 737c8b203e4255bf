"""What the files in ``data/`` hold, by field. The book's data page is made of this; a test holds it to the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.rows import Row
from talking_heads_utils.files import data_dir

_CARD = {
    "spec": "every setting of the training run",
    "seed": "seed of the run, the model's first weights included",
    "stage": "`early` or `final`",
    "step": "training step of this checkpoint",
    "longest": "longest list in training at that step, in items",
    "accuracy": "fraction of the fixed prompts answered rightly, over the whole vocabulary: IOI, and lists by length",
    "running_loss": "cross-entropy of the answer, in nats, averaged over the steps before",
    "complete_at": "step from which every length was in training",
    "early_at": "step of the early checkpoint",
    "rounds": "of training begun beyond the first",
    "checks": "loss and accuracy at the end of each round, on prompts of their own, by which it goes on",
    "log": "the same figures at every evaluation",
    "minutes": "wall-clock time of the whole run",
}
_SEEDS = {
    "model": "whose recipe it is",
    "checkpoint": "sum of the run's last weights, which ship for seed 0 alone",
    **{name: _CARD[name] for name in ("seed", "step", "minutes", "longest", "complete_at", "early_at", "accuracy")},
    "movers": "heads that copy the answer, the strongest first, by the selection half",
    "share": "of the logit difference that they write",
    "inhibition_score": "I(m) of the strongest, held-out half, with its 95% interval and n",
    "inhibition_heads": "the heads whose patching lowers it, and what taking each out does to I(m), held-out half",
    "dimension": "the fewest directions that carry 90% of what these heads together do",
    "channel": "change of I(m), held-out half, by how many directions are taken out, and which",
    "n_items": "of the lists it was measured on",
    "prompts_seed": "of those lists, draws and controls",
    "processing": "of the weights before anything was measured",
    "seconds": "that the measurement took; null where it was not noted",
    "machine": "processor, cores, threads, GPU of the measurement",
    "versions": "of Python, this package and the libraries that results depend on",
    "sha256": "of all of this",
}
_BENCHMARK = {
    "benchmark": "its name, as the command takes it",
    "machine": "processor, cores, threads, GPU",
    "versions": "of Python, this package and the libraries that results depend on",
    "weights": "which checkpoint",
    "rows": "a case each: `ours_s`, `plain_s` (median seconds), `ratio` (plain over ours), `max_abs_diff` (largest "
    "difference between the two results), `ours_peak_mb`, `plain_peak_mb` (resident memory, 10⁶ bytes)",
}
_PLAN = {
    "run": "of what kind the run is",
    "model": "as the command took it",
    "revision": "the Hub's commit; null for a model that is not from the Hub",
    "checkpoint": "sum of a folder's weights; null otherwise",
    "processing": "of the weights before anything was measured",
    "dtype": "of the model",
    "prefix": "the tokens in front of every prompt and every window of running text, as text; empty for none",
    "seed": "of prompts, draws and controls",
    "quick": "whether prompts and grids were cut down; no page shows such a result",
}
_RESULT = {
    "experiment": "its name; `talking_heads_utils.experiments.catalogue` lists them all",
    "chapter": "whose page it belongs to",
    "shows": "what a figure of it must say it shows",
    "source": "sum of the code that made it: of its module and of all that this imports",
    "texts": "running text that it read, with its sum or revision; null where it reads none",
    "rows": "of the table",
    "not_possible": "why the model cannot do this experiment; null where there is a table",
    "seconds": "it took",
    "machine": "processor, cores, threads, GPU",
    "versions": "of Python, this package and the libraries that results depend on",
    "sha256": "of this description and the table together",
}
_SCORES = {
    "singular_values.<layer>": "`[n_heads, d_head]`: of every head's OV matrix, the largest first",
    "crc32": "checksum plus 1 of every tensor after it; 0 where one is not written yet",
    "<kind>.<layer>.score": "`[layer, n_heads, d_head, n_heads]`: composition score, 0 to 1, of writer layer, writer "
    "head, component, into reader head of `<layer>`; `<kind>` is the input that is read, Q, K or V",
    "<kind>.<layer>.null": "`[3, n_heads]`: mean, standard deviation and maximum of the scores of random unit "
    "directions into each reader head",
}


@dataclass(frozen=True)
class DataFiles:
    """Files of one kind. pattern: below ``data/``. fields: of a JSON or safetensors file,
    or columns of a table, name -> meaning. but: a file name that is not meant."""

    pattern: str
    holds: str
    made_by: str
    fields: Mapping[str, str] = field(default_factory=dict)
    but: str = ""

    def paths(self) -> list[Path]:
        return [path for path in sorted(data_dir().glob(self.pattern)) if path.name != self.but]


def columns_of(kind: type[Row] | None) -> dict[str, str]:
    """Column -> what it holds and in which unit, as the rows declare it."""
    return {c.name: c.meaning + (f" ({c.unit})" if c.unit else "") for c in kind.columns()} if kind else {}


DATA_FILES = (
    DataFiles(
        "gpt2-small/composition.safetensors",
        "Composition scores of GPT-2 small's real attention weights, float16. The file's metadata says which "
        "checkpoint (SHA-256), processing, seed and versions made it; "
        "`talking_heads_utils.scores.scores.load_scores` reads it.",
        "`python -m talking_heads_utils composition --weights gpt2 --out data/gpt2-small/composition.safetensors`",
        _SCORES,
    ),
    DataFiles(
        "gpt2-small/quantised.json",
        "How far quantising GPT-2 small's attention weights as in a GGUF file moves composition scores; "
        "`talking_heads_utils.experiments.inhibition.quantised` says what the columns mean.",
        "`python -m talking_heads_utils quantised --weights gpt2 --out data/gpt2-small/quantised.json`",
        {
            "about": "checkpoint (SHA-256), processing and versions",
            "rows": "a quantisation and a kind each, against the float scores; F16 is the control",
        },
    ),
    DataFiles(
        "models/*/*/model.safetensors",
        "Weights of the small models trained here, in the Hub's format for GPT-2, float32.",
        "`python -m talking_heads_utils train NAME --out FOLDER`",
    ),
    DataFiles(
        "models/mini-[!i]*/*/training.json",
        "How each of them was trained, and how well it does.",
        "the same",
        _CARD | {"last": "accuracy on more fixed prompts, `n` of each kind, by which nothing was decided"},
    ),
    DataFiles(
        "models/mini-icl*/*/training.json",
        "The same for models of functions, and what they are held against.",
        "the same",
        _CARD | {
            "exact_reader": "accuracy of the exact Bayesian reader on the same prompts",
            "by_function": "accuracy after all examples, function by function, 20 prompts each",
        },
    ),
    DataFiles(
        "reference/icl_post.json",
        "What the post's stored notebook outputs show for Llama-3-8B, with its source. Quoted, not measured here.",
        "hand",
        {
            "source": "the post, its notebooks and the commit at which they were read",
            "model": "the model that they ran",
            "task": "the function, and the two prompts",
            "ablation": "what was taken out",
            "patch": "what was put in",
            "patching": "a set of heads each: A's first five numbers, layers where B answers 2x, where A's answer is",
            "sweep": "answers to (x, 59) with A's residual stream of layer 15 put in, counted",
            "logit_lens": "which number leads after which blocks",
            "head_scores": "scores of named heads, before and after layers 10 and 11 are out",
            "missing": "what the notebooks lack",
        },
    ),
    DataFiles("models/*/*/*config.json", "Settings of model, generation and tokenizer, by `transformers`.", "the same"),
    DataFiles("models/*/*/tokenizer.json", "The vocabulary: a word a token. What begins a text.", "the same"),
    DataFiles("models/*/*/README.md", "The model's card.", "the same"),
    DataFiles(
        "prompts/*.json",
        "Wordings of the two tasks, with the blanks that names, places and things fill.",
        "hand",
        {
            "note": "where the wordings come from and what the blanks mean",
            "templates": "IOI: name of a wording -> its text",
            "wordings": "Laundry List: name of a wording -> its text",
            "held_out": "Laundry List: the wordings that no choice ever sees",
        },
    ),
    DataFiles("prompts/*.txt", "Names, places and objects, one a line.", "hand"),
    DataFiles(
        "prompts/relations/*.tsv",
        "In-context tasks of words: a pair a line, question and answer, a tabulator between them. Pairs whose answer "
        "is several tokens of a model's tokenizer are left out where they are used, and counted.",
        "hand",
    ),
    DataFiles(
        "results/*/plan.json",
        "What all finished experiments of a model have in common.",
        "`python -m talking_heads_utils reproduce --model MODEL`",
        _PLAN,
    ),
    DataFiles(
        "results/*/*.json", "Finished experiments: what each depends on and how it was made.", "the same", _RESULT,
        but="plan.json",
    ),
    *(
        DataFiles(f"results/*/{e.name}.parquet", f"Tables: {e.about}.", "the same", columns_of(e.row))
        for e in EXPERIMENTS
    ),
    DataFiles(
        "seeds/plan.json",
        "What the measures beside it have in common.",
        "the same as these",
        {
            "n_prompts": "lists, half of them to choose by, half to measure on",
            "n_items": "of each list",
            "prompts_seed": "of those lists, draws and controls",
        },
    ),
    DataFiles(
        "seeds/mini-*.json",
        "Runs of the small models from several seeds: the channel into the mover; only seed 0 ships.",
        "`python -m talking_heads_utils train NAME --seed SEED --out RUN`, then `... seeds RUN --out data/seeds`",
        _SEEDS,
    ),
    DataFiles(
        "benchmarks/*.json",
        "Times, memory and agreement of ours and the plain way, in one process, on the same work.",
        "`python -m talking_heads_utils benchmark NAME`",
        _BENCHMARK,
    ),
)  # fmt: skip


def shipped_files() -> Iterator[Path]:
    """Every file that ships in ``data/``, but the notes about the folders themselves."""
    notes = {folder / "README.md" for folder in (data_dir(), data_dir() / "results")}
    return (path for path in sorted(data_dir().rglob("*")) if path.is_file() and path not in notes)
