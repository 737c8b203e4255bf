"""One figure for any frame: what it draws is what the frame says."""

import pandas as pd
import pytest

from talking_heads_utils.errors import OptionError
from talking_heads_utils.figures import heads

COMMON = dict(metric="accuracy", unit="share", value=0.5, low=-0.5, high=0.2, n=9)


def frame(rows):
    found = pd.DataFrame([COMMON | row for row in rows])
    return found.astype({name: "Int64" for name in ("layer", "head", "component") if name in found})


def test_many_heads_are_a_map_with_a_menu_of_positions():
    rows = [
        dict(site="z", layer=layer, head=head, component=None, position=at, change=layer - head / 10 - 2 * (at == "S2"))
        for at in ("S2", "end") for layer in range(5) for head in range(8)
    ]  # fmt: skip
    figure = heads(frame(rows))
    first, second = figure.data
    assert first.z[3][4] == pytest.approx(0.6) and second.z[3][4] == pytest.approx(2.6)
    assert first.x[4] == "H4" and first.y[3] == "L3" and first.zmax == -first.zmin == pytest.approx(4.0)
    assert "n = 9" in first.customdata[0][0] and "[-0.500, +0.200]" in first.customdata[0][0]
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["heads, S2", "heads, end"]


def test_a_site_of_layers_is_a_map_of_positions_and_holes_stay_holes():
    rows = [dict(site="resid_pre", layer=k, position=str(p), change=k * p) for k in range(6) for p in range(9)][:-1]
    (found,) = heads(frame(rows)).data
    assert found.x == tuple("012345678") and found.z[5][7] == 35 and found.z[5][8] is None


def test_few_rows_are_bars_with_intervals():
    sets = [dict(what=name, layer=None, head=None, component=None, change=c) for name, c in (("a", -0.1), ("b", 0.1))]
    (bars,) = heads(frame(sets)).data
    assert bars.x == ("a", "b") and bars.y == (-0.1, 0.1)
    assert bars.error_y.array == pytest.approx((0.3, 0.1)) and bars.error_y.arrayminus == pytest.approx((0.4, 0.6))
    (settings,) = heads(frame([{"L1H0.0": 2.0, "change": 0.0}])).data
    assert settings.x == ("+2 L1H0.0",)
    components = [dict(layer=1, head=h, component=k, change=h - k) for h in range(3) for k in range(20)]
    (found,) = heads(frame(components)).data
    assert found.y == ("L1H0", "L1H1", "L1H2") and found.z[2][19] == -17


def test_other_frames_are_refused():
    with pytest.raises(OptionError, match="lacks"):
        heads(pd.DataFrame({"a": [1]}))
    with pytest.raises(OptionError, match="several metrics"):
        heads(frame([dict(what="a", change=1), dict(what="b", change=1, metric="loss")]))
