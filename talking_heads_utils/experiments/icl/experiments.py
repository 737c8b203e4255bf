"""Chapter 4's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments.context import Experiment
from talking_heads_utils.experiments.icl import (
    additivity,
    backups,
    evidence,
    parts,
    patching,
    post,
    redundancy,
    sufficient,
    tasks,
    whole,
    words,
)

EXPERIMENTS = (
    Experiment("words", 4, 4, words.WordsRow, tasks.words, "tasks of words, as chapter 3 asks them", of_own=False),
    Experiment("tasks", 4, 6, words.WordsRow, tasks.run_tasks, "accuracy on tasks in context"),
    Experiment("shown", 4, 1, tasks.ShownRow, tasks.run_shown, "one prompt after various examples"),
    Experiment("functions", 4, 3, whole.FunctionsRow, whole.functions, "whole answers of y = a x + b", of_own=False),
    Experiment("heads", 4, 8, redundancy.HeadRow, redundancy.run_heads, "what each head does to each task"),
    Experiment("pairs", 4, 8, redundancy.PairRow, redundancy.run_pairs, "interactions of heads"),
    Experiment("sets", 4, 10, redundancy.SetRow, redundancy.run_sets, "what sets of heads do together"),
    Experiment("backups", 4, 6, backups.BackupRow, backups.run, "what others recover"),
    Experiment("sufficient", 4, 12, sufficient.SufficientRow, sufficient.run, "how few heads suffice"),
    Experiment("patches", 4, 8, patching.PatchRow, patching.run_patches, "patching by layer"),
    Experiment("layers-out", 4, 6, patching.OutRow, patching.run_out, "heads of two layers out"),
    Experiment("first-layer", 4, 8, patching.FirstRow, patching.run_first, "the first layer whose patch works"),
    Experiment("post", 4, 1, post.PostRow, post.run, "the post's own two prompts", of_own=False),
    Experiment("labels", 4, 4, evidence.GateRow, evidence.run_gate, "two labels in context"),
    Experiment("evidence", 4, 4, evidence.EvidenceRow, evidence.run_evidence, "log-odds by signed evidence"),
    Experiment("readers", 4, 4, evidence.ReaderRow, evidence.run_readers, "readers of the evidence"),
    Experiment("slopes", 4, 4, evidence.SlopeRow, evidence.run_slopes, "slope, curvature and order"),
    Experiment("sums", 4, 6, additivity.SumRow, additivity.run, "sums of contributions"),
    Experiment("looks-back", 4, 4, parts.LooksBackRow, parts.run_looks_back, "attention to earlier answers"),
    Experiment("parts", 4, 4, parts.PartRow, parts.run_parts, "attributes without one layer's MLP"),
)  # fmt: skip
