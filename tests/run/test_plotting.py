import math
import struct
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tf_mlm.run import plotting
from tf_mlm.run.plotting import best_epoch, loss_limits, perplexity_ticks, plot_loss

START = {
    "event": "start", "epoch": 0, "step": 0, "val_loss": 10.92, "val_perplexity": 55270.8, "val_masked_accuracy": 0.0,
    "unigram_entropy": 6.93, "steps_per_epoch": 94, "num_train_steps": 1880,
}  # fmt: skip


def _epoch(number: int, loss: float | None, val_loss: float | None) -> dict:
    return {"event": "epoch", "epoch": number, "step": 94 * number, "loss": loss, "val_loss": val_loss,
            "learning_rate": 5e-4 / number, "tokens_per_second": 1500.0, "seconds": 80.0}  # fmt: skip


def _step(number: int, loss: float | None) -> dict:
    return {"event": "step", "step": number, "epoch": 1 + number // 94, "loss": loss, "learning_rate": 1e-4}


THREE = [_epoch(1, 5.1, 4.76), _epoch(2, 4.5, 4.36), _epoch(3, 4.3, 4.40)]
CASES = {
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
def test_any_part_of_a_run_is_drawn_at_the_promised_size(events):
    files = plot_loss(events, "a run")
    assert files["png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", files["png"][16:24]) == (1600, 1040)
    assert ElementTree.fromstring(files["svg"]).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_events_give_the_same_bytes_and_others_do_not():
    assert plot_loss(CASES["three epochs"], "a run") == plot_loss(CASES["three epochs"], "a run")
    assert plot_loss(CASES["three epochs"], "a run") != plot_loss(CASES["one epoch"], "a run")


@pytest.mark.parametrize("title", ["costs $5 and $6", "$\\frac{", "two\nlines", "x" * 500, ""])
def test_a_title_is_text_and_no_markup(title):
    assert plot_loss(CASES["one epoch"], title)["png"]


def test_best_is_the_lowest_finite_validation_loss_and_the_first_of_equals():
    assert best_epoch([START, *THREE])["epoch"] == 2
    assert best_epoch([START, *THREE, _epoch(4, 4.1, 4.36)])["epoch"] == 2
    assert best_epoch([START, _epoch(1, 5.0, math.nan), _epoch(2, 5.0, None), _epoch(3, 5.0, 4.9)])["epoch"] == 3
    assert best_epoch([START, _epoch(1, 5.0, -math.inf)]) is None
    assert best_epoch([START | {"val_loss": 0.1}]) is None


def test_what_is_written_in_the_figure(monkeypatch):
    def texts(events: list[dict]) -> set[str]:
        figures = []
        monkeypatch.setattr(plotting, "Figure", lambda **settings: figures.append(Figure(**settings)) or figures[0])
        plot_loss(events, "a run")
        return {text.get_text() for text in figures[0].findobj(Text)}

    shown = texts([START, *THREE])
    assert {"a run", "best 4.36, epoch 2", "↑ before training 10.92\n↑ unigram entropy of the corpus 6.93"} <= shown
    assert "loss not finite" not in shown
    assert "loss not finite" in texts(CASES["null in the middle"])
    assert {"before training 10.92", "unigram entropy of the corpus 6.93"} <= texts([START])
    assert not any(text.startswith("best") for text in texts(CASES["nothing finite"]))


def test_the_best_is_marked_at_its_epoch_and_value():
    axes = Figure().subplots()
    plotting._draw_losses(axes, [START, *THREE])
    (marker,) = [line for line in axes.lines if line.get_markersize() == 9]
    assert (marker.get_xdata().item(), marker.get_ydata().item()) == (2.0, 4.36)


def test_a_far_start_does_not_squeeze_the_losses_of_the_epochs():
    events = [START | {"unigram_entropy": 5.5}, _step(10, 9.1), *THREE]
    assert loss_limits(events) == (4.3, 5.5)  # 0.8 nats of epochs: 5.5 leaves them two thirds, 10.92 an eighth


def test_references_that_fit_are_inside():
    assert loss_limits([START | {"val_loss": 5.4}, *THREE]) == (4.3, 5.4)
    assert loss_limits([START | {"val_loss": 4.0, "unigram_entropy": 5.2}, *THREE]) == (4.0, 5.2)


def test_with_fewer_than_three_epochs_everything_is_inside():
    assert loss_limits([START, _step(10, 9.1), *THREE[:2]]) == (4.36, 10.92)
    assert loss_limits([START]) == (6.93, 10.92)


def test_a_diverged_loss_is_outside():
    assert loss_limits([START | {"val_loss": 5.4}, *THREE, _epoch(4, 1e30, 300.0)]) == (4.3, 5.4)


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
def test_perplexity_ticks_are_round(low, high, labels):
    ticks = [label for _, label in perplexity_ticks(low, high)]
    assert ticks == labels


@pytest.mark.parametrize("low", [0.0, 0.7, 3.33, 6.9])
@pytest.mark.parametrize("span", [0.06, 0.4, 0.99, 1.0, 1.7, 2.5, 4.0, 8.0, 30.0, 300.0])
def test_perplexity_ticks_keep_apart_and_stand_at_the_log_of_their_label(low, span):
    ticks = perplexity_ticks(low, low + span)
    assert len(ticks) >= 2
    for loss, label in ticks:
        assert loss == pytest.approx(math.log(float(label.replace(",", ""))), abs=1e-6)
        assert low <= loss <= low + span
    losses = [loss for loss, _ in ticks]
    assert all(after - before >= span / 9 for before, after in pairwise(losses))
