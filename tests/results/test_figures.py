"""What a panel of a figure shows."""

import pytest

from repro.results.figures import _points, _pyplot


def row(**metrics: float) -> dict:
    shown = {name: {"value": value, "unit": "share"} for name, value in metrics.items()}
    return {"metrics": shown, "per_problem": {}}


def test_an_arm_is_a_point_of_its_means_if_it_has_both_metrics():
    plt = _pyplot()
    figure, axis = plt.subplots()
    by_arm = {
        "one": [row(accuracy=0.25, tokens=30.0)],
        "two": [row(accuracy=0.5, tokens=20.0), row(accuracy=0.75, tokens=40.0)],
        "half": [row(accuracy=0.5)],
    }
    _points(axis, {"names": ("accuracy", "tokens")}, by_arm)
    drawn = {bars.get_label(): bars.lines[0].get_xydata()[0].tolist() for bars in axis.containers}
    assert drawn == {"one": [30.0, 0.25], "two": [30.0, 0.625]}
    (across, up) = (bar.get_segments()[0] for bar in axis.containers[0].lines[2])
    assert across[0].tolist() == across[1].tolist() == up[0].tolist() == pytest.approx([30.0, 0.25])  # one number
    assert axis.get_xlabel() == "tokens"
    plt.close(figure)
