"""Step and epoch events, built from artificial logs."""

import math
from typing import Any

import pytest

from tests.training.callbacks.conftest import FakeModel
from tf_mlm.errors import NonFiniteLoss
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.events import EpochEvent, Event, StepEvent

VALIDATION = {"val_loss": 2.0, "val_masked_accuracy": 0.5, "val_masked_accuracy_top_5": 0.75}


def build_log(model: FakeModel, step: int = 0, **options: Any) -> tuple[Any, list[Event]]:
    from tf_mlm.training.callbacks.metrics_log import MetricsLog

    events: list[Event] = []
    log = MetricsLog(
        [events.append],
        progress=Progress(step, (0.0, 0.0), metrics_bytes=0, seconds=0.0, fingerprint=""),
        schedule=lambda update: 0.1 * update,
        count_tokens=lambda first, end: 100 * (end - first),
        **{
            "positions_per_step": 400,
            "steps_per_epoch": 4,
            "num_train_steps": 8,
            "log_every": 2,
            "max_bad_steps": 2,
            **options,
        },
    )
    log.set_model(model)
    return log, events


def make_steps(log: Any, model: FakeModel, *losses: float, bad: float = 0.0) -> None:
    for loss in losses:
        model.add_loss(10 * loss, 10)
        log.on_train_batch_end(0, {"bad_step": bad})


def test_a_step_event_reports_the_mean_since_the_previous_one(model: FakeModel) -> None:
    log, events = build_log(model)
    log.on_epoch_begin(0)
    make_steps(log, model, 5.0, 4.0, 3.0, 1.0)
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert [(event.step, event.loss) for event in steps] == [(2, 4.5), (4, 2.0)]
    assert [event.learning_rate for event in steps] == pytest.approx([0.1, 0.3])  # of updates 1 and 3, counted from 0


def test_a_step_event_may_cover_the_end_of_an_epoch(model: FakeModel) -> None:
    log, events = build_log(model, log_every=3, num_train_steps=9)
    log.on_epoch_begin(0)
    make_steps(log, model, 5.0, 5.0, 5.0, 8.0)
    model.metrics[0].total = model.metrics[0].count = 0.0  # as Keras clears the sums
    log.on_epoch_begin(1)
    make_steps(log, model, 2.0, 2.0)
    assert [event.loss for event in events if isinstance(event, StepEvent)] == [5.0, 4.0]


def test_an_epoch_event_has_every_metric_of_the_table(model: FakeModel) -> None:
    log, events = build_log(model)
    log.on_epoch_begin(0)
    make_steps(log, model, 5.0, 5.0, 5.0, 5.0)
    log.on_epoch_end(0, {"loss": 5.0, **VALIDATION})
    event = events[-1]
    assert isinstance(event, EpochEvent) and (event.epoch, event.step, event.loss) == (1, 4, 5.0)
    assert event.validation == {
        "loss": 2.0, "perplexity": math.exp(2.0), "masked_accuracy": 0.5, "masked_accuracy_top_5": 0.75,
    }  # fmt: skip


def test_speed_counts_real_tokens_and_mfu_counts_positions(model: FakeModel) -> None:
    """300 of 400 positions are padding."""
    log, events = build_log(model, matmul_peak=1e6)
    log.on_epoch_begin(0)
    make_steps(log, model, 5.0, 5.0)
    step = events[-1]
    assert isinstance(step, StepEvent) and step.tokens_per_second and step.mfu
    assert step.mfu * 1e6 / step.tokens_per_second == pytest.approx(4.0, rel=0.05)


def test_steps_without_an_update_have_no_loss_and_are_counted(model: FakeModel) -> None:
    log, events = build_log(model, max_bad_steps=3)
    log.on_epoch_begin(0)
    log.on_train_batch_end(0, {"bad_step": 1.0})
    log.on_train_batch_end(1, {"bad_step": 1.0})
    event = events[-1]
    assert isinstance(event, StepEvent) and event.loss is None and event.skipped_steps == 2
    assert log.bad_steps == 2
    make_steps(log, model, 5.0)
    assert log.bad_steps == 0 and log.skipped_steps == 2


def test_too_many_consecutive_bad_steps_end_the_fit(model: FakeModel) -> None:
    log, _ = build_log(model)
    log.on_epoch_begin(0)
    log.on_train_batch_end(0, {"bad_step": 1.0})
    with pytest.raises(NonFiniteLoss, match=r"at step 2 \(epoch 1\) is not finite \(2 consecutive steps\)") as error:
        log.on_train_batch_end(1, {"bad_step": 1.0})
    assert error.value.num_steps == 2


def test_a_validation_loss_that_is_not_finite_ends_the_fit(model: FakeModel) -> None:
    log, _ = build_log(model)
    log.on_epoch_begin(0)
    make_steps(log, model, 5.0, 5.0, 5.0, 5.0)
    with pytest.raises(NonFiniteLoss, match="the validation loss at step 4"):
        log.on_epoch_end(0, {"loss": 5.0, **VALIDATION, "val_loss": math.nan})


def test_training_stops_at_its_last_step(model: FakeModel) -> None:
    log, _ = build_log(model, num_train_steps=3)
    log.on_epoch_begin(0)
    make_steps(log, model, 5.0, 5.0)
    assert not model.stop_training
    make_steps(log, model, 5.0)
    assert model.stop_training


def test_a_resumed_log_continues_the_counts_of_the_checkpoint(model: FakeModel) -> None:
    log, events = build_log(model, step=6)
    log.on_epoch_begin(1)
    make_steps(log, model, 3.0, 3.0)
    assert [(event.epoch, event.step) for event in events] == [(2, 8)]
