"""What the files in ``data/`` hold. The book's data page is made of this; a test holds it to the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from talking_heads_utils.experiments.catalogue import EXPERIMENTS
from talking_heads_utils.experiments.power import PowerRow
from talking_heads_utils.experiments.rows import Row
from talking_heads_utils.files import data_dir

COMMAND = "`python -m talking_heads_utils"
HAND = "hand"


@dataclass(frozen=True)
class DataFiles:
    """Files of one kind. pattern: below ``data/``. fields: of a safetensors file, or columns of a table, name ->
    meaning. but: a file name that is not meant."""

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
        f"{COMMAND} composition --weights gpt2 --out data/gpt2-small/composition.safetensors`",
        {
            "singular_values.<layer>": "`[n_heads, d_head]`: of every head's OV matrix, the largest first",
            "crc32": "checksum plus 1 of every tensor after it; 0 where one is not written yet",
            "<kind>.<layer>.score": "`[layer, n_heads, d_head, n_heads]`: composition score, 0 to 1, of writer layer, "
            "writer head, component, into reader head of `<layer>`; `<kind>` is the input that is read, Q, K or V",
            "<kind>.<layer>.null": "`[3, n_heads]`: mean, standard deviation and maximum of the scores of random unit "
            "directions into each reader head",
        },
    ),
    DataFiles(
        "gpt2-small/quantised.json",
        "How far quantising GPT-2 small's attention weights as in a GGUF file moves composition scores: a quantisation "
        "and a kind a row, F16 the control. `talking_heads_utils.experiments.inhibition.quantised.quantised_frame` "
        "says what the columns mean.",
        f"{COMMAND} quantised --weights gpt2 --out data/gpt2-small/quantised.json`",
    ),
    DataFiles(
        "models/*/*/model.safetensors",
        "Weights of the small models trained here, in the Hub's format for GPT-2, float32.",
        f"{COMMAND} train NAME --out FOLDER`",
    ),
    DataFiles(
        "models/*/*/training.json",
        "How each of them was trained (`talking_heads_utils.training.loop.Progress`), by which recipe "
        "(`talking_heads_utils.training.spec.MiniSpec`), and its accuracy by kind of prompt; `last` is that on more "
        "prompts, by which nothing was decided. Of models of functions also that of the exact Bayesian reader.",
        "the same",
    ),
    DataFiles("models/*/*/*config.json", "Settings of model, generation and tokenizer, by `transformers`.", "the same"),
    DataFiles("models/*/*/tokenizer.json", "The vocabulary: a word a token. What begins a text.", "the same"),
    DataFiles("models/*/*/README.md", "The model's card.", "the same"),
    DataFiles(
        "reference/icl_post.json",
        "What the post's stored notebook outputs show for Llama-3-8B, with its source. Quoted, not measured here.",
        HAND,
    ),
    DataFiles(
        "prompts/*.json",
        "Wordings of the two tasks, with the blanks that names, places and things fill; of the Laundry List also which "
        "ones no choice ever sees.",
        HAND,
    ),
    DataFiles("prompts/*.txt", "Names, places and objects, one a line.", HAND),
    DataFiles(
        "prompts/relations/*.tsv",
        "In-context tasks of words: a pair a line, question and answer, a tabulator between them. Pairs whose answer "
        "is several tokens of a model's tokenizer are left out where they are used, and counted.",
        HAND,
    ),
    DataFiles(
        "results/*/plan.json",
        "What all finished experiments of a model have in common: model and revision, processing, prefix, seed.",
        f"{COMMAND} reproduce --model MODEL`",
    ),
    DataFiles(
        "results/*/*.json",
        "Finished experiments: the sums of the code and the texts that each depends on, time, machine, versions, and "
        "the reason where a model cannot do one.",
        "the same",
        but="plan.json",
    ),
    *(
        DataFiles(f"results/*/{e.name}.parquet", f"Tables: {e.about}.", "the same", columns_of(e.row))
        for e in EXPERIMENTS
    ),
    DataFiles(
        "power.parquet",
        "What the verdict rules say in planted worlds, whose truth is known.",
        f"{COMMAND} power --out data/power.parquet`",
        columns_of(PowerRow),
    ),
    DataFiles(
        "seeds/*.json",
        "Runs of the small models from several seeds: accuracy at the end, heads that inhibit the mover, and I(m) as "
        "directions leave its query (`talking_heads_utils.training.seeds.channel_curve`); only seed 0 ships.",
        f"{COMMAND} train NAME --seed SEED --out RUN`, then `... seeds RUN --out data/seeds`",
    ),
    DataFiles(
        "benchmarks/*.json",
        "Times, memory and agreement of ours and the plain way, in one process, on the same work: a case a row.",
        f"{COMMAND} benchmark NAME`",
    ),
)
