"""Chapter 3's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments.context import Experiment
from talking_heads_utils.experiments.editing import baked, costs, gains, removal

EXPERIMENTS = (
    Experiment("removal", 3, 3, removal.RemovalRow, removal.run, "one component removed from the movers' queries"),
    Experiment("edit-gains", 3, 30, gains.EditRow, gains.run, "accuracy by edits of the weights"),
    Experiment("edit-tried", 3, 5, costs.TriedRow, costs.run_tried, "gain and cost of every edit that was measured",
               reads_texts=True),
    Experiment("edit-costs", 3, 10, costs.CostRow, costs.run_costs, "what the best edits cost elsewhere",
               reads_texts=True),
    Experiment("edit-baked", 3, 3, baked.BakedRow, baked.run, "the best edit in plain transformers", of_own=False),
)  # fmt: skip
