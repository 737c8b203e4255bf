"""Chapter 4's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments.context import Context, Experiment
from talking_heads_utils.experiments.icl import curves, patching, redundancy, study, whole, words
from talking_heads_utils.experiments.icl.additivity import AdditivityRow
from talking_heads_utils.experiments.icl.pairing import NO_EXAMPLES, OTHER_FUNCTION, RANDOM_PAIRS
from talking_heads_utils.experiments.icl.parts import LooksBackRow, PartRow
from talking_heads_utils.experiments.icl.task import Task, task_of
from talking_heads_utils.labels import Head

N_SEEN = 8  # examples that laws are fitted on
N_STRONG, N_TOP, FEW = 6, 3, 8  # heads whose pairs are taken out, that go together; prompts of a quick run
B_SEES = (OTHER_FUNCTION, RANDOM_PAIRS, NO_EXAMPLES)


def strongest(run: Context) -> list[Head]:
    """The heads that are worth most, the most first."""
    return study.strongest(run, run.kept(task_of), N_STRONG, n=run.n(64, FEW))


def _asked(run: Context) -> tuple[Context, Task]:
    return run, run.kept(task_of)


def _words(run: Context) -> list[words.WordsRow]:
    return words.words(run, run.n(32, FEW), (0, 4, 8) if run.quick else words.COUNTS)


def _pairs(run: Context) -> list[redundancy.PairRow]:
    return study.pairs(*_asked(run), run.kept(strongest), n=run.n(64, FEW))


def _heads_out(run: Context) -> list[redundancy.RemovalRow]:
    most = 4 if run.quick and len(study.all_heads(run)) > study.MANY else None
    return study.removal(*_asked(run), n=run.n(64, FEW), most=most)


def _patch(run: Context) -> list[patching.PatchRow]:
    sets = patching.post_sets((run.bridge.cfg.n_layers, run.bridge.cfg.n_heads))
    return [row for b in B_SEES for row in patching.patches(*_asked(run), sets, n=run.n(64, FEW), b=b)]


def _backups(run: Context) -> list[redundancy.BackupRow]:
    return study.backups(*_asked(run), run.kept(strongest)[:N_TOP], n=run.n(64, FEW))


def _log_odds(run: Context) -> list[curves.LawRow]:
    asked = _asked(run)
    return curves.fit_laws(study.belief(*asked, run.n(200)), N_SEEN, task=asked[1].name, seed=run.seed)


EXPERIMENTS = (
    Experiment("words", 4, 5, words.WordsRow, _words, "in-context tasks of words", of_own=False),
    Experiment("functions", 4, 4, whole.FunctionsRow, lambda run: whole.functions(run, n=run.n(64, FEW)),
               "whole answers of y = a x + b", of_own=False),
    Experiment("accuracy", 4, 1, study.AccuracyRow, lambda run: study.accuracy(*_asked(run), run.n(200)),
               "by number of examples"),
    Experiment("pairs", 4, 3, redundancy.PairRow, _pairs, "interactions of heads"),
    Experiment("heads-out", 4, 6, redundancy.RemovalRow, _heads_out, "accuracy as heads go"),
    Experiment("patch", 4, 5, patching.PatchRow, _patch, "patching by layer and ablation"),
    Experiment("post", 4, 1, patching.PostRow, lambda run: patching.post_patches(*_asked(run)),
               "the post's own prompts"),
    Experiment("backups", 4, 2, redundancy.BackupRow, _backups, "direct effects after ablations"),
    Experiment("log-odds", 4, 1, curves.LawRow, _log_odds, "laws of belief"),
    Experiment("additivity", 4, 8, AdditivityRow, lambda run: study.additivity(*_asked(run), run.n(48, FEW)),
               "sums of contributions"),
    Experiment("parts", 4, 1, PartRow, lambda run: study.layers_out(*_asked(run), run.n(100, FEW)),
               "layers taken out"),
    Experiment("looks-back", 4, 1, LooksBackRow, lambda run: study.looks_back(*_asked(run), run.n(48, FEW)),
               "attention to answers"),
)  # fmt: skip
