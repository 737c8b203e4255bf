"""How often each rule says what, where the truth is known: planted worlds in which a claim is true or false, seeded."""

from __future__ import annotations

from dataclasses import dataclass

from talking_heads_utils.experiments.rows import Row, column


@dataclass(frozen=True)
class PowerRow(Row):
    """Verdicts of one rule over many worlds of one kind."""

    claim: str = column("", "its id, as in `talking_heads_utils.experiments.claims`")
    world: str = column("", "of what kind the worlds are")
    truth: bool = column("", "whether the claim is true there")
    effect_size: float = column("", "of what the claim speaks of; what it counts depends on the claim")
    noise: float = column("", "standard deviation of what blurs it; what it blurs depends on the claim")
    n_heads: int = column("heads", "writers that are judged")
    n_readers: int = column("heads", "readers that are judged")
    n_worlds: int = column("worlds", "drawn, each with a seed of its own")
    supported: float = column("share of worlds", "in which the rule says so")
    not_supported: float = column("share of worlds", "the same")
    undecided: float = column("share of worlds", "the same")
