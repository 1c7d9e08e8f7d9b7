"""Typed events, written to and read from JSON."""

import math
from pathlib import Path

import pytest

from tf_mlm.errors import Refused
from tf_mlm.run.events import (
    EndEvent,
    EpochEvent,
    Event,
    Events,
    NonFiniteEvent,
    StartEvent,
    StepEvent,
    append_event,
    read_events,
)

VALIDATION = {"loss": 4.25, "perplexity": 70.1, "masked_accuracy": 0.3, "masked_accuracy_top_5": 0.5}
EVENTS: list[Event] = [
    StartEvent(validation=VALIDATION, steps_per_epoch=94, num_train_steps=188, num_warmup_steps=11),
    StepEvent(step=10, epoch=1, loss=5.5, learning_rate=2e-5, tokens_per_second=1500.5),
    StepEvent(step=20, epoch=1, loss=None, learning_rate=2e-5, skipped_steps=10, mfu=0.5),
    EpochEvent(step=94, epoch=1, loss=5.0, learning_rate=1e-5, validation=VALIDATION, seconds=80.5),
    EndEvent(step=94, epoch=1, best_epoch=1, best_val_loss=4.25, seconds=80.5, stopped_early=True),
    NonFiniteEvent(step=94, epoch=1, sequences=[3, 1]),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_a_written_event_is_read_back_unchanged(tmp_path: Path, event: Event) -> None:
    append_event(tmp_path / "metrics.jsonl", event)
    assert read_events(tmp_path / "metrics.jsonl") == (event,)


def test_events_have_the_documented_keys() -> None:
    assert list(EVENTS[3].as_dict()) == [
        "event", "epoch", "step", "loss", "val_loss", "val_perplexity", "val_masked_accuracy",
        "val_masked_accuracy_top_5", "learning_rate", "skipped_steps", "tokens_per_second", "seconds",
    ]  # fmt: skip
    assert EVENTS[2].as_dict()["loss"] is None  # every step was skipped
    assert "rolled_back" not in EndEvent().as_dict()


def test_an_incomplete_last_line_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_events(path) == ()
    path.write_bytes(b'{"event": "step", "step": 10, "of_a_later_version": [1]}\n{"event": "end", "text": "\xc3')
    assert read_events(path) == (StepEvent(step=10),)


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "st',
        "[]",
        "1",
        '{"event": "other"}',
        '{"event": "step", "step": "ten"}',
        '{"event": "start", "schedule": "fast"}',
        '{"event": "start", "fills": [[1]]}',
        '{"event": "end", "rolled_back": [1]}',
        '{"event": "epoch", "val_loss": [1]}',
    ],
)
def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"event": "start"}}\n{line}\n{{"event": "end"}}\n')
    with pytest.raises(Refused, match=r"metrics.jsonl: line 2 is damaged: .*; start a new run$"):
        read_events(tmp_path / "metrics.jsonl")


def test_an_infinite_perplexity_is_null_and_read_as_none(tmp_path: Path) -> None:
    append_event(tmp_path / "metrics.jsonl", EpochEvent(step=1, validation={"loss": 800.0, "perplexity": math.inf}))
    assert '"val_perplexity": null' in (tmp_path / "metrics.jsonl").read_text()
    (event,) = read_events(tmp_path / "metrics.jsonl")
    assert event.validation == {"loss": 800.0, "perplexity": None} and event.val_loss == 800.0


def epoch(number: int, val_loss: float | None) -> EpochEvent:
    return EpochEvent(epoch=number, step=94 * number, validation={"loss": val_loss})


def test_the_best_is_the_lowest_finite_validation_loss_and_the_first_of_equals() -> None:
    start = StartEvent(validation={"loss": 10.9})
    first, second, third = epoch(1, 4.76), epoch(2, 4.36), epoch(3, 4.40)
    assert Events([start, first, second, third]).best is second
    assert Events([start, first, second, third, epoch(4, 4.36)]).best is second
    assert Events([start, epoch(1, math.nan), epoch(2, None), third]).best is third
    assert Events([epoch(1, -math.inf)]).best is None
    assert Events().best is None


def test_the_model_before_training_is_the_best_if_no_epoch_is_better() -> None:
    start = StartEvent(validation={"loss": 4.0})
    assert Events([start, epoch(1, 4.5), epoch(2, 4.0)]).best is start


def test_the_steps_per_epoch_are_read_from_any_event_that_has_them() -> None:
    assert Events([StartEvent(steps_per_epoch=94)]).steps_per_epoch == 94
    assert Events([epoch(2, 4.0)]).steps_per_epoch == 94
    assert Events([StepEvent(step=3)]).steps_per_epoch is None
