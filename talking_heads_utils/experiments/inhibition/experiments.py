"""Chapter 1's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments import prefixes
from talking_heads_utils.experiments.context import GATE, ROLES, Context, Experiment
from talking_heads_utils.experiments.gate import Cell
from talking_heads_utils.experiments.inhibition import (
    attends,
    basis,
    circuit,
    exchange,
    links,
    listeners,
    prediction,
    rivals,
    says,
    slider,
)

EXPERIMENTS = (
    Experiment("prefix", 1, 3, prefixes.PrefixRow, prefixes.run, "what stands in front of a prompt", of_own=False),
    Experiment(GATE, 1, 6, Cell, Context.run_gate, "which tasks the model can do", of_own=False),
    Experiment(ROLES, 1, 4, circuit.RoleRow, circuit.run_roles, "who does what on IOI", of_own=False),
    Experiment("links", 1, 1, links.LinkRow, links.run, "do known writers stand out in the weights"),
    Experiment("listeners", 1, 1, listeners.ListenerRow, listeners.run, "whose queries read the S-inhibition heads"),
    Experiment("basis", 1, 1, basis.BasisRow, basis.run, "singular vectors against random bases of the same head"),
    Experiment("rivals", 1, 1, rivals.RivalRow, rivals.run, "four measures on the known links"),
    Experiment("prediction", 1, 1, prediction.PredictionRow, prediction.run, "which components carry the signal"),
    Experiment("circuit", 1, 3, circuit.CircuitRow, circuit.run, "how much of IOI runs through these heads",
               of_own=False),
    Experiment("exchange", 1, 30, exchange.ExchangeRow, exchange.run, "components exchanged between name orders"),
    Experiment("hits", 1, 1, exchange.HitRow, exchange.run_hits, "do the weights name the component that carries"),
    Experiment("effects", 1, 2, exchange.ComponentRow, exchange.run_effects, "scores and effects by component"),
    Experiment("slider", 1, 3, slider.SliderRow, slider.run, "one coefficient moved by hand"),
    Experiment("says", 1, 2, says.SaysRow, says.run, "what the predicted components say: place or token"),
    Experiment("attends", 1, 8, attends.AttendsRow, attends.run, "where S-inhibition heads attend in running text",
               reads_texts=True),
    Experiment("contexts", 1, 1, attends.ContextRow, attends.contexts,
               "where in running text the predicted components are largest", reads_texts=True),
)  # fmt: skip
