"""Event files for TensorBoard: one value per step and curve."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tf_mlm.run.events import Events

Scalars = dict[str, dict[str, list[tuple[int, float]]]]
Write = Callable[[list[dict[str, Any]], list[dict[str, Any]]], Scalars]

START: dict[str, Any] = {
    "event": "start", "epoch": 0, "step": 0, "val_loss": 10.5, "val_perplexity": 36315.5, "val_masked_accuracy": 0.0,
    "unigram_entropy": 6.9, "steps_per_epoch": 94, "fills": [[["a", 0.5]]],
}  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"event": "step", "step": step, "epoch": 1, "loss": loss, "learning_rate": rate, "tokens_per_second": 1500.0}
    for step, loss, rate in ((10, 9.5, 1e-5), (20, 8.5, 2e-5))
]
EPOCH: dict[str, Any] = {
    "event": "epoch", "epoch": 1, "step": 20, "loss": 9.0, "val_loss": 7.5, "val_perplexity": 1808.0,
    "val_masked_accuracy": 0.25, "learning_rate": 2e-5, "tokens_per_second": 1400.0, "seconds": 80.5,
}  # fmt: skip
END: dict[str, Any] = {"event": "end", "epoch": 1, "step": 20, "best_epoch": 1, "best_val_loss": 7.5, "seconds": 80.5}


@pytest.fixture
def write(tensorflow: None, tmp_path: Path) -> Write:
    from tf_mlm.run.tensorboard import TensorBoardFiles

    def write(first: list[dict[str, Any]], then: list[dict[str, Any]]) -> Scalars:
        with TensorBoardFiles(tmp_path / "tensorboard", Events.from_dicts(first)) as board:
            for event in Events.from_dicts(then):
                board.write(event)
        return scalars(tmp_path / "tensorboard")

    return write


def scalars(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """{writer: {tag: [(step, value)]}}"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for name in os.listdir(folder):
        events = EventAccumulator(str(folder / name), size_guidance={"tensors": 0})
        events.Reload()
        found[name] = {
            tag: [(event.step, round(float(make_ndarray(event.tensor_proto)), 6)) for event in events.Tensors(tag)]
            for tag in events.Tags()["tensors"]
        }
    return found


EXPECTED = {
    "train": {
        "loss": [(10, 9.5), (20, 8.5)],
        "learning_rate": [(10, 1e-5), (20, 2e-5)],
        "tokens_per_second": [(10, 1500.0), (20, 1500.0)],
        "skipped_steps": [(10, 0.0), (20, 0.0)],
        "epoch_skipped_steps": [(20, 0.0)],
        "epoch_loss": [(20, 9.0)],
        "epoch_learning_rate": [(20, 2e-5)],
        "epoch_tokens_per_second": [(20, 1400.0)],
        "epoch_seconds": [(20, 80.5)],
    },
    "validation": {
        "loss": [(0, 10.5), (20, 7.5)],
        "perplexity": [(0, 36315.5), (20, 1808.0)],
        "masked_accuracy": [(0, 0.0), (20, 0.25)],
    },
}


def test_each_curve_has_one_value_per_step(write: Write) -> None:
    """The training loss of an epoch has a different tag from its validation loss and from that of its last step."""
    assert write([], [START, *STEPS, EPOCH, END]) == EXPECTED


def test_a_resumed_run_writes_each_event_once(write: Write) -> None:
    write([], [START, *STEPS])
    assert write([START, *STEPS], [EPOCH, END]) == EXPECTED


def test_after_an_epoch_everything_is_on_disk(tensorflow: None, tmp_path: Path) -> None:
    from tf_mlm.run.tensorboard import TensorBoardFiles

    with TensorBoardFiles(tmp_path / "tensorboard", Events.from_dicts([START, *STEPS, EPOCH])):
        assert scalars(tmp_path / "tensorboard") == EXPECTED


def test_a_perplexity_too_large_for_float32_is_omitted(write: Write) -> None:
    huge = EPOCH | {"val_loss": 95.0, "val_perplexity": 1.8e41}
    found = write([], [START, huge, EPOCH | {"epoch": 2, "step": 40, "val_perplexity": None}])["validation"]
    assert found["loss"] == [(0, 10.5), (20, 95.0), (40, 7.5)]
    assert found["perplexity"] == [(0, 36315.5)]
