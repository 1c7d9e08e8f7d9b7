"""Builds the step and epoch events from the metrics of `fit`."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from tf_mlm.errors import NonFiniteLoss
from tf_mlm.model.metrics import LOSS, metric_values, total_and_count
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.events import EpochEvent, Event, StepEvent, finite_or_none


class MetricsLog(keras.callbacks.Callback):
    """Builds step and epoch events, passes each to all functions of `sinks`, and counts skipped steps.

    The loss of an event is None if all steps that it reports were skipped.

    Args:
        progress: progress of the run before this `fit`.
        schedule: learning rate by update, counted from 0.
        count_tokens: maps (first, end) to the number of real tokens of the updates first to end - 1, counted from 0.
        positions_per_step: number of positions in a batch, including padding.
        num_train_steps: number of updates after which training stops, also in the middle of an epoch.
        max_bad_steps: `NonFiniteLoss` is raised after this number of consecutive steps with a loss or gradient that is
            not finite.
        objective: a value of `objective.name`.
        matmul_peak: positions per second of the matrix products alone; None if not measured.
        evaluate_second: returns the metrics on the second validation dataset; None if there is none.
    """

    def __init__(
        self,
        sinks: Sequence[Callable[[Event], None]],
        *,
        progress: Progress,
        schedule: Callable[[int], Any],
        count_tokens: Callable[[int, int], int],
        positions_per_step: int,
        steps_per_epoch: int,
        num_train_steps: int,
        log_every: int,
        max_bad_steps: int,
        objective: str = "masked",
        matmul_peak: float | None = None,
        evaluate_second: Callable[[], dict[str, float | None] | None] = lambda: None,
    ):
        super().__init__()
        self._supports_tf_logs = True  # otherwise Keras reads every metric at every step
        self._sinks = sinks
        self._schedule = schedule
        self._count_tokens = count_tokens
        self._positions_per_step = positions_per_step
        self._steps_per_epoch = steps_per_epoch
        self._num_train_steps = num_train_steps
        self._log_every = log_every
        self._max_bad_steps = max_bad_steps
        self._objective = objective
        self._matmul_peak = matmul_peak
        self._evaluate_second = evaluate_second
        self._epoch = progress.step // steps_per_epoch + 1
        self._last_step = self.step = progress.step
        self.logged_sums = progress.logged_sums
        self.skipped_steps = progress.skipped_steps
        self.bad_steps = progress.bad_steps
        self._start_clock(progress.epoch_seconds)

    @property
    def epoch_seconds(self) -> float:
        """Seconds spent in the training steps of the current epoch."""
        return self._trained_until - self._epoch_start

    def _start_clock(self, epoch_seconds: float) -> None:
        self._last_time = self._trained_until = time.monotonic()
        self._epoch_start = self._last_time - epoch_seconds

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1
        self._start_clock(self.epoch_seconds)
        self._last_step = self.step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        is_bad = float(logs["bad_step"]) > 0  # the only value read from the device at every step
        self.skipped_steps += is_bad
        self.bad_steps = self.bad_steps + 1 if is_bad else 0
        if self.bad_steps >= self._max_bad_steps:
            raise NonFiniteLoss(
                f"the loss or its gradient at step {self.step} (epoch {self._epoch}) is not finite "
                f"({self.bad_steps} consecutive steps)",
                self.bad_steps,
            )
        if self.step % self._log_every == 0:
            self._log_step()
        if self.step == self._num_train_steps:
            self.model.stop_training = True
        if self.step % self._steps_per_epoch == 0:
            # Keras clears the sums for the next epoch; the next step event also reports the rest of this one.
            total, count = self._loss_sums()
            self.logged_sums = self.logged_sums[0] - total, self.logged_sums[1] - count
        # Validation comes next and does not count as training time.
        self._trained_until = time.monotonic()

    def _log_step(self) -> None:
        sums = self._loss_sums()
        num_labels = sums[1] - self.logged_sums[1]
        now = time.monotonic()
        self._emit(
            StepEvent(
                step=self.step,
                epoch=self._epoch,
                loss=(sums[0] - self.logged_sums[0]) / num_labels if num_labels else None,
                learning_rate=self._learning_rate(),
                skipped_steps=self.skipped_steps,
                tokens_per_second=self._tokens_per_second(self._last_step, now - self._last_time),
                mfu=self._mfu(self._last_step, now - self._last_time),
            )
        )
        self.logged_sums, self._last_time, self._last_step = sums, now, self.step

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        val_loss = float(logs[f"val_{LOSS.name}"])
        if not math.isfinite(val_loss):
            raise NonFiniteLoss(f"the validation loss at step {self.step} (epoch {self._epoch}) is not finite")
        second_validation = self._evaluate_second()
        seconds = time.monotonic() - self._epoch_start
        first_step = (self._epoch - 1) * self._steps_per_epoch
        self._emit(
            EpochEvent(
                epoch=self._epoch,
                step=self.step,
                loss=finite_or_none(float(logs[LOSS.name])) or None,  # 0 only if there is no label
                validation=metric_values(logs, "val_", self._objective),
                second_validation=second_validation,
                learning_rate=self._learning_rate(),
                skipped_steps=self.skipped_steps,
                seconds=round(seconds, 3),
                tokens_per_second=self._tokens_per_second(first_step, self.epoch_seconds),
                mfu=self._mfu(first_step, self.epoch_seconds),
            )
        )
        self._start_clock(0.0)

    def _loss_sums(self) -> tuple[float, float]:
        return total_and_count(self.model.metrics[0])

    def _learning_rate(self) -> float:
        return float(self._schedule(self.step - 1))

    def _tokens_per_second(self, first_step: int, seconds: float) -> float:
        return round(self._count_tokens(first_step, self.step) / max(seconds, 1e-9), 1)

    def _mfu(self, first_step: int, seconds: float) -> float | None:
        if self._matmul_peak is None:
            return None
        positions_per_second = (self.step - first_step) * self._positions_per_step / max(seconds, 1e-9)
        return round(positions_per_second / self._matmul_peak, 4)

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)
