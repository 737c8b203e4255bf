"""Chapter 2's experiments, as the catalogue has them."""

from __future__ import annotations

from talking_heads_utils.experiments.context import Experiment
from talking_heads_utils.experiments.positional import (
    crowding,
    decoding,
    interchange,
    order,
    steering,
    subspace,
    traversal,
)

EXPERIMENTS = (
    Experiment("components", 2, 1, subspace.ComponentRow, subspace.run, "which components span the subspace"),
    Experiment("points", 2, 3, decoding.PointRow, decoding.run_points, "where lists sit in it"),
    Experiment("decoding", 2, 4, decoding.DecodingRow, decoding.run, "index or item, and in how many dimensions"),
    Experiment("interchange", 2, 10, interchange.InterchangeRow, interchange.run, "a donor's coordinates put in"),
    Experiment("line", 2, 1, traversal.LineRow, traversal.run_line, "one component moved by hand"),
    Experiment("map", 2, 2, traversal.MapRow, traversal.run_map, "three components moved by hand"),
    Experiment("reach", 2, 4, traversal.ReachRow, traversal.run_reach, "whether every item can be reached"),
    Experiment("margins", 2, 5, crowding.CrowdingRow, crowding.run_margins, "errors beside distances"),
    Experiment("scales", 2, 2, crowding.ScaleRow, crowding.run_scales, "the cloud made wider or narrower"),
    Experiment("order", 2, 1, order.OrderRow, order.run, "accuracy by index in kept and shuffled order"),
    Experiment("steering-gains", 2, 5, steering.GainRow, steering.run, "steering beside a correction of the logits"),
)
