import math
import struct
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tf_mlm.run import plotting
from tf_mlm.run.events import Events
from tf_mlm.run.plotting import loss_limits, perplexity_ticks


def plot_loss(events: list[dict[str, Any]], title: str) -> dict[str, bytes]:
    return plotting.plot_loss(Events.from_dicts(events), title)


def limits(*events: dict[str, Any]) -> tuple[float, float]:
    return loss_limits(Events.from_dicts(list(events)))


START = {
    "event": "start", "epoch": 0, "step": 0, "val_loss": 10.92, "val_perplexity": 55270.8, "val_masked_accuracy": 0.0,
    "unigram_entropy": 6.93, "steps_per_epoch": 94, "num_train_steps": 1880,
}  # fmt: skip


def _epoch(number: int, loss: float | None, val_loss: float | None) -> dict[str, Any]:
    return {"event": "epoch", "epoch": number, "step": 94 * number, "loss": loss, "val_loss": val_loss,
            "learning_rate": 5e-4 / number, "tokens_per_second": 1500.0, "seconds": 80.0}  # fmt: skip


def _step(number: int, loss: float | None) -> dict[str, Any]:
    return {"event": "step", "step": number, "epoch": 1 + number // 94, "loss": loss, "learning_rate": 1e-4}


THREE = [_epoch(1, 5.1, 4.76), _epoch(2, 4.5, 4.36), _epoch(3, 4.3, 4.40)]
CASES: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "start alone": [START],
    "no start": THREE,
    "one step": [START, _step(10, 9.1)],
    "one epoch": [START, _step(10, 9.1), THREE[0]],
    "three epochs": [START, _step(10, 9.1), *THREE],
    "hundreds of epochs": [START, *(_epoch(n, 3 + 2 / n, 3 + 1.8 / n) for n in range(1, 401))],
    "nan in the middle": [START, _epoch(1, 5.1, 4.8), _epoch(2, math.nan, math.inf), _epoch(3, 4.3, 4.2)],
    "null in the middle": [START, _step(10, 9.0), _step(20, None), _epoch(1, 5.1, None), _epoch(2, None, 4.4)],
    "nothing finite": [START | {"val_loss": math.nan, "unigram_entropy": math.inf}, _epoch(1, math.nan, math.nan)],
    "diverged": [START, *THREE, _epoch(4, 1e30, 1e30)],
    "no loss moves": [START | {"val_loss": 3.0}, *(_epoch(n, 3.0, 3.0) for n in range(1, 5))],
    "a loss of zero": [START, *(_epoch(n, 0.0, 0.0) for n in range(1, 5))],
}


@pytest.mark.parametrize("events", CASES.values(), ids=CASES)
def test_an_incomplete_run_is_drawn_at_the_documented_size(events: list[dict[str, Any]]) -> None:
    files = plot_loss(events, "a run")
    assert files["png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", files["png"][16:24]) == (1600, 1040)
    assert ElementTree.fromstring(files["svg"]).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_events_give_the_same_bytes_and_others_do_not() -> None:
    assert plot_loss(CASES["three epochs"], "a run") == plot_loss(CASES["three epochs"], "a run")
    assert plot_loss(CASES["three epochs"], "a run") != plot_loss(CASES["one epoch"], "a run")


def test_the_plot_of_a_fine_tuning_run_has_its_score_instead_of_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plotting, "place_labels", lambda figure, labels: figures.append(figure))
    start = {"event": "start", "epoch": 0, "step": 0, "val_loss": 0.7, "val_accuracy": 0.5, "val_macro_f1": 0.4}
    epoch = {
        "event": "epoch",
        "epoch": 1,
        "step": 9,
        "loss": 0.6,
        "val_loss": 0.5,
        "val_accuracy": 0.8,
        "val_macro_f1": 0.9,
    }
    plot_loss([start, epoch], "a classifier")
    labels = [axes.get_ylabel() for axes in figures[0].axes]
    assert labels == ["loss (nats)", "learning\nrate", "validation macro F1"]
    assert list(figures[0].axes[2].lines[0].get_ydata()) == [0.4, 0.9]  # type: ignore[arg-type]
    assert not figures[0].axes[0].child_axes  # no axis of perplexities


@pytest.mark.parametrize("title", ["costs $5 and $6", "$\\frac{", "two\nlines", "x" * 500, ""])
def test_a_title_is_not_parsed_as_markup(title: str) -> None:
    assert plot_loss(CASES["one epoch"], title)["png"]


def draw(monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]]) -> Figure:
    """The figure that `plot_loss` saves."""
    figures: list[Figure] = []

    def keep(**settings: Any) -> Figure:
        figures.append(Figure(**settings))
        return figures[-1]

    monkeypatch.setattr(plotting, "Figure", keep)
    plot_loss(events, "a run")
    return figures[-1]


def texts(monkeypatch: pytest.MonkeyPatch, *events: dict[str, Any]) -> set[str]:
    return {text.get_text() for text in draw(monkeypatch, list(events)).findobj(Text)}


def test_the_figure_names_the_best_epoch_and_the_values_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(monkeypatch, START, *THREE)
    assert {"a run", "best 4.36, epoch 2", "↑ before training 10.92\n↑ unigram entropy of the corpus 6.93"} <= shown
    assert "loss not finite" not in shown
    assert "loss not finite" in texts(monkeypatch, *CASES["null in the middle"])
    assert {"before training 10.92", "unigram entropy of the corpus 6.93"} <= texts(monkeypatch, START)
    assert not any(text.startswith("best") for text in texts(monkeypatch, *CASES["nothing finite"]))


def test_a_loss_that_rises_out_of_the_figure_is_named_at_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [START | {"val_loss": 5.0, "unigram_entropy": None}, *THREE, _step(290, 11.6), _epoch(4, 9.0, 8.5)]
    shown = texts(monkeypatch, *events)
    assert "↑ training up to 11.60\n↑ validation up to 8.50" in shown


def test_epochs_worse_than_the_start_are_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [START | {"val_loss": 2.9, "unigram_entropy": 3.0}, *(_epoch(n, 100.0 + n, 200.0 + n) for n in (1, 2, 3))]
    assert limits(*events)[1] == 203.0
    assert "best 2.90, before training" in texts(monkeypatch, *events)


def test_the_legend_has_the_mask_ratios_if_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"mlm_probability": 0.25, "validation_mlm_probability": 0.15}
    shown = texts(monkeypatch, START | ratios, *THREE)
    assert {"training, epochs (25% masked)", "validation (15% masked)"} <= shown
    assert "validation" in texts(monkeypatch, START | ratios | {"mlm_probability": 0.15}, *THREE)


def test_the_best_is_marked_at_its_epoch_and_value() -> None:
    axes = Figure().subplots()
    plotting._draw_losses(axes, Events.from_dicts([START, *THREE]))
    (marker,) = [line for line in axes.lines if line.get_markersize() == 9]
    assert (np.asarray(marker.get_xdata()).item(), np.asarray(marker.get_ydata()).item()) == (2.0, 4.36)


def test_a_mean_is_drawn_at_the_middle_of_its_interval() -> None:
    axes = Figure().subplots()
    plotting._draw_losses(axes, Events.from_dicts([START, _step(47, 9.0), _step(94, 8.0), _epoch(1, 8.5, 7.0)]))
    steps, epochs, validation, *_ = axes.lines
    assert np.asarray(steps.get_xdata()).tolist() == [0.25, 0.75]
    assert np.asarray(epochs.get_xdata()).tolist() == [0.5]
    assert np.asarray(validation.get_xdata()).tolist() == [0.0, 1.0]


def test_the_rate_panel_shows_a_peak_between_logged_steps() -> None:
    """Logged every 94 steps; the warmup ends at step 10."""
    schedule = [[step, 5e-4 * min(step / 10, (1880 - step) / 1870)] for step in range(1, 1881)]
    axes = Figure().subplots()
    plotting._draw_rate(axes, Events.from_dicts([START | {"schedule": schedule}, *THREE]))
    (line,) = axes.lines
    assert np.asarray(line.get_ydata()).max() == pytest.approx(5e-4) and np.asarray(line.get_xdata()).max() == 3.0
    assert axes.get_yticklabels()[-1].get_text() == "0.0005"


@pytest.mark.parametrize("entropy", [2.6, 2.72, 2.75, 2.78, 2.8, 2.85, 6.9])
@pytest.mark.parametrize("before", [2.5, 2.81, 2.86, 2.9, 10.9])
def test_labels_never_overlap(monkeypatch: pytest.MonkeyPatch, entropy: float, before: float) -> None:
    start = START | {"val_loss": before, "unigram_entropy": entropy}
    for num_epochs in (1, 3, 9):
        epochs = [_epoch(n, 3.0 - 0.03 * n, 2.87 - 0.01 * n if n < 8 else 2.9) for n in range(1, num_epochs + 1)]
        figure = draw(monkeypatch, [start, *epochs])
        figure.draw_without_rendering()
        labels = [text for text in figure.axes[0].texts if text.get_text()]
        boxes = [text.get_window_extent() for text in labels]
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[index + 1 :]), [text.get_text() for text in labels]
            assert figure.axes[0].bbox.padded(1).containsx(box.x0) and figure.axes[0].bbox.padded(1).containsx(box.x1)


def test_a_high_starting_loss_does_not_compress_the_epochs() -> None:
    events = [START | {"unigram_entropy": 5.5}, _step(10, 9.1), *THREE]
    assert limits(*events) == (4.3, 5.5)  # with 5.5, the epochs have two thirds of the height; with 10.92, an eighth


def test_references_that_fit_are_inside() -> None:
    assert limits(START | {"val_loss": 5.4}, *THREE) == (4.3, 5.4)
    assert limits(START | {"val_loss": 4.0, "unigram_entropy": 5.2}, *THREE) == (4.0, 5.2)


def test_all_losses_are_inside_before_the_third_epoch() -> None:
    assert limits(START, _step(10, 9.1), *THREE[:2]) == (4.36, 10.92)
    assert limits(START) == (6.93, 10.92)


def test_a_diverged_loss_is_outside() -> None:
    assert limits(START | {"val_loss": 5.4}, *THREE, _epoch(4, 1e30, 300.0)) == (4.3, 5.4)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (3.4, 5.0, ["30", "40", "50", "60", "80", "100", "120"]),
        (3.5, 7.2, ["50", "100", "200", "500", "1,000"]),
        (3.6, 11.5, ["100", "300", "1,000", "3,000", "10,000", "30,000"]),
        (3.55, 3.75, ["36", "38", "40", "42"]),
        (0.0, 0.5, ["1", "1.2", "1.4", "1.6"]),
        (-0.1, 30.0, ["1", "100", "10,000", "1e+06", "1e+08", "1e+10", "1e+12"]),
    ],
)
def test_perplexity_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    ticks = [label for _, label in perplexity_ticks(low, high)]
    assert ticks == labels


@pytest.mark.parametrize("low", [0.0, 0.7, 3.33, 6.9])
@pytest.mark.parametrize("span", [0.06, 0.4, 0.99, 1.0, 1.7, 2.5, 4.0, 8.0, 30.0, 300.0])
def test_perplexity_ticks_do_not_overlap_and_lie_at_the_log_of_their_label(low: float, span: float) -> None:
    ticks = perplexity_ticks(low, low + span)
    assert len(ticks) >= 2
    for loss, label in ticks:
        assert loss == pytest.approx(math.log(float(label.replace(",", ""))), abs=1e-6)
        assert low <= loss <= low + span
    losses = [loss for loss, _ in ticks]
    assert all(after - before >= span / 9 for before, after in pairwise(losses))
