"""What happens around `model.fit`: events, the best model, curves, progress, checkpoints and signals."""

import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import tensorflow as tf
import tf_keras as keras
import tqdm

from tf_mlm.atomic_files import atomic_directory, write_atomically
from tf_mlm.errors import Interrupted, NonFiniteLoss, as_os_error
from tf_mlm.model.loading import save_model
from tf_mlm.model.metrics import perplexity, scalar_results
from tf_mlm.run.checkpoint import Progress, model_variables, restore_variables, save_checkpoint
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.plotting import plot_loss

Event = dict[str, Any]


class MetricsLog(keras.callbacks.Callback):
    """Builds the step and epoch events and hands each to `sinks`; counts the steps that were skipped.

    Where every step that an event tells of was skipped, its loss is None.

    Args:
        progress: how far the run has come before.
        schedule: the learning rate by update, counted from 0.
        tokens_per_step: of a full batch.
        num_train_steps: after so many updates training stops, in the middle of an epoch if need be.
        max_bad_steps: after so many steps in a row whose loss or gradient is not finite, NonFiniteLoss is raised.
        ceiling: tokens a second that the matrix products alone would allow; None where it was not measured.
    """

    def __init__(
        self,
        sinks: list[Callable[[Event], None]],
        *,
        progress: Progress,
        schedule: Callable[[int], Any],
        steps_per_epoch: int,
        num_train_steps: int,
        tokens_per_step: int,
        log_every: int,
        max_bad_steps: int,
        ceiling: float | None = None,
    ):
        super().__init__()
        self._supports_tf_logs = True  # else Keras reads every metric at every step
        self._sinks = sinks
        self._schedule = schedule
        self._steps_per_epoch = steps_per_epoch
        self._num_train_steps = num_train_steps
        self._tokens_per_step = tokens_per_step
        self._log_every = log_every
        self._max_bad_steps = max_bad_steps
        self._ceiling = ceiling
        self._epoch = progress.step // steps_per_epoch + 1
        self.step = progress.step
        self.logged_sums = progress.logged_sums
        self.skipped_steps = progress.skipped_steps
        self.bad_steps = progress.bad_steps
        self._begin_clock(progress.epoch_seconds)

    @property
    def epoch_seconds(self) -> float:
        """Time spent in training in the epoch under way."""
        return self._trained_until - self._epoch_start

    def _begin_clock(self, epoch_seconds: float) -> None:
        self._last_time = self._trained_until = time.monotonic()
        self._epoch_start = self._last_time - epoch_seconds

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch + 1
        self._begin_clock(self.epoch_seconds)
        self._last_step = self.step

    def on_train_batch_end(self, batch: int, logs: dict[str, tf.Tensor]) -> None:
        self.step += 1
        is_bad = float(logs["bad_step"]) > 0  # all that is read of the device at every step
        self.skipped_steps += is_bad
        self.bad_steps = self.bad_steps + 1 if is_bad else 0
        if self.bad_steps >= self._max_bad_steps:
            raise NonFiniteLoss(
                f"the loss or its gradient at step {self.step} (epoch {self._epoch}) is not finite, "
                f"{self.bad_steps} steps in a row",
                self.bad_steps,
            )
        if self.step % self._log_every == 0:
            sums = float(self.model.metrics[0].total), float(self.model.metrics[0].count)
            num_labels = sums[1] - self.logged_sums[1]
            now = time.monotonic()
            self._emit(
                event="step",
                step=self.step,
                epoch=self._epoch,
                loss=(sums[0] - self.logged_sums[0]) / num_labels if num_labels else None,
                learning_rate=float(self._schedule(self.step - 1)),
                skipped_steps=self.skipped_steps,
                **self._speed(self._last_step, now - self._last_time),
            )
            self.logged_sums, self._last_time, self._last_step = sums, now, self.step
        if self.step == self._num_train_steps:
            self.model.stop_training = True
        if self.step % self._steps_per_epoch == 0:
            # The sums start anew; the next event still counts what no event has shown.
            sums = float(self.model.metrics[0].total), float(self.model.metrics[0].count)
            self.logged_sums = self.logged_sums[0] - sums[0], self.logged_sums[1] - sums[1]
        # Validation comes next and is not part of the training speed.
        self._trained_until = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, tf.Tensor]) -> None:
        val_loss = float(logs["val_loss"])
        if not math.isfinite(val_loss):
            raise NonFiniteLoss(f"the validation loss at step {self.step} (epoch {self._epoch}) is not finite")
        seconds = time.monotonic() - self._epoch_start
        self._emit(
            event="epoch",
            epoch=self._epoch,
            step=self.step,
            loss=float(logs["loss"]) or None,  # exactly 0 only where there is no label in the sum
            val_loss=val_loss,
            val_perplexity=perplexity(val_loss),
            val_masked_accuracy=float(logs["val_masked_accuracy"]),
            val_masked_accuracy_top_5=float(logs["val_masked_accuracy_top_5"]),
            learning_rate=float(self._schedule(self.step - 1)),
            skipped_steps=self.skipped_steps,
            **self._speed((self._epoch - 1) * self._steps_per_epoch, self.epoch_seconds),
            seconds=round(seconds, 3),
        )
        self._begin_clock(0.0)

    def _speed(self, since_step: int, seconds: float) -> dict[str, float]:
        tokens_per_second = (self.step - since_step) * self._tokens_per_step / max(seconds, 1e-9)
        speed = {"tokens_per_second": round(tokens_per_second, 1)}
        if self._ceiling:
            speed["mfu"] = round(tokens_per_second / self._ceiling, 4)
        return speed

    def _emit(self, **event: Any) -> None:
        for sink in self._sinks:
            sink(event)


class BestModel(keras.callbacks.Callback):
    """Keeps `model/` at the epoch of the lowest validation loss."""

    def __init__(self, folder: Path, tokenizer: Any, best_val_loss: float | None):
        super().__init__()
        self._folder = folder
        self._tokenizer = tokenizer
        self._best = math.inf if best_val_loss is None else best_val_loss

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        if logs["val_loss"] < self._best:
            self._best = float(logs["val_loss"])
            with as_os_error(safetensors.SafetensorError), atomic_directory(self._folder) as temporary:
                save_model(self.model, self._tokenizer, temporary)


class EarlyStopping(keras.callbacks.Callback):
    """Stops after `patience` epochs without a better val_loss.

    Keras' own keeps a count that a resumed run would lack; this one reads it off the run's events.
    """

    def __init__(self, run: RunDirectory, patience: int):
        super().__init__()
        self._run = run
        self._patience = patience

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if has_stopped_early(self._run.read_events(), self._patience):
            self.model.stop_training = True


def has_stopped_early(events: list[Event], patience: int) -> bool:
    """Whether the last `patience` epochs are all no better than one before them; never where patience is 0."""
    losses = [event["val_loss"] for event in events if event["event"] == "epoch"]
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


class ResumedEpoch(keras.callbacks.Callback):
    """Puts back the metric sums of the epoch in whose middle a run goes on; Keras clears them as the epoch begins."""

    def __init__(self, progress: Progress, steps_per_epoch: int, model: Any):
        super().__init__()
        self._supports_tf_logs = True
        self._sums = {}
        if progress.step % steps_per_epoch:
            self._sums = {name: variable.numpy() for name, variable in model_variables(model, only="metric").items()}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._sums:
            restore_variables(model_variables(self.model, only="metric"), self._sums)
        self._sums = {}


def finish_epoch(model: Any, around: list[keras.callbacks.Callback], validation_dataset: Any, epoch: int) -> None:
    """Validate and close an epoch whose last update was made before the run was stopped."""
    logs: dict[str, Any] = dict(scalar_results(model))
    every = keras.callbacks.CallbackList(around, model=model)
    every.on_epoch_begin(epoch)
    results = model.evaluate(validation_dataset, verbose=0, return_dict=True, callbacks=every)
    every.on_epoch_end(epoch, logs | {f"val_{name}": value for name, value in results.items()})


class Curves(keras.callbacks.Callback):
    """Redraws loss.png, loss.svg and the curve under plots/, and rewrites history.csv, after each epoch."""

    def __init__(self, run: RunDirectory):
        super().__init__()
        self._run = run
        self._told = False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.draw()

    def draw(self) -> None:
        self._run.write_history()
        pictures = plot_loss(self._run.read_events(), self._run.name)
        for kind, content in pictures.items():
            write_atomically(self._run.path / f"loss.{kind}", content)
        curve = self._run.choose_curve()
        try:
            curve.parent.mkdir(exist_ok=True)
            write_atomically(curve, pictures["png"])
        except OSError as error:  # a second copy costs no run
            if not self._told:
                tqdm.tqdm.write(
                    f"{curve}: cannot be written: {error.strerror}; the curve is in {self._run.path}/loss.png"
                )
            self._told = True


class ProgressLines(keras.callbacks.Callback):
    """Says how the training goes: a bar where stderr is a terminal, else a plain line for each event."""

    def __init__(self, num_train_steps: int, epochs: int, first_step: int):
        super().__init__()
        self._supports_tf_logs = True
        self._epochs = epochs
        self._num_train_steps = num_train_steps
        self._first_step = first_step
        self._start = time.monotonic()
        self._bar = tqdm.tqdm(
            total=num_train_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True, leave=False
        )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._bar.update()

    def close(self) -> None:
        self._bar.close()

    def show(self, event: Event) -> None:
        speed = f"{event['tokens_per_second']:,.0f} tokens/s"
        if "mfu" in event:
            speed += f" ({event['mfu']:.0%} of the ceiling)"
        if event["event"] == "step":
            loss = f"loss {_shown(event['loss'])}"
            self._bar.set_postfix_str(f"{loss}, {speed}")
            if not self._bar.disable:
                return
            text = f"step {event['step']}/{self._num_train_steps}  epoch {event['epoch']}/{self._epochs}  {loss}  "
            text += f"rate {event['learning_rate']:.3g}  {speed}  {self._time_left(event['step'])} left"
        else:
            text = (
                f"epoch {event['epoch']}/{self._epochs}  loss {_shown(event['loss'])}  "
                f"val_loss {event['val_loss']:.4f}  perplexity {event['val_perplexity']:.2f}  "
                f"masked accuracy {event['val_masked_accuracy']:.4f}  "
                f"{speed}  {self._time_left(event['step'])} left"
            )
        tqdm.tqdm.write(text, file=sys.stderr)

    def _time_left(self, step: int) -> str:
        rate = (time.monotonic() - self._start) / max(step - self._first_step, 1)
        seconds = round(rate * (self._num_train_steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _shown(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


class Checkpoints(keras.callbacks.Callback):
    """Saves a checkpoint every so often, and when SIGINT or SIGTERM asks the run to stop.

    Until the first step has been made there is nothing to save, and a signal ends the process at once.

    Args:
        progress: how far the run has come before.
    """

    def __init__(
        self,
        run: RunDirectory,
        log: MetricsLog,
        *,
        every_minutes: float,
        every_steps: int,
        keep: int,
        steps_per_epoch: int,
        progress: Progress,
    ):
        super().__init__()
        self._supports_tf_logs = True
        self._run = run
        self._log = log
        self._every_seconds = every_minutes * 60
        self._every_steps = every_steps
        self._keep = keep
        self._steps_per_epoch = steps_per_epoch
        self._before = progress
        self._start = self._last_save = time.monotonic()
        self._signal = 0
        self._previous_handlers: dict[int, Any] = {}

    def progress(self) -> Progress:
        """How far the run has come."""
        log = self._log
        return replace(
            self._before,
            step=log.step,
            logged_sums=log.logged_sums,
            metrics_bytes=self._run.metrics_path.stat().st_size,
            seconds=self._before.seconds + time.monotonic() - self._start,
            epoch_seconds=log.epoch_seconds,
            skipped_steps=log.skipped_steps,
            bad_steps=log.bad_steps,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def _hold_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._note_signal)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if exception[0] is None:
            self._stop_if_asked()  # by a signal since the last step

    def _note_signal(self, number: int, frame: object) -> None:
        self._signal = number
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # a second Ctrl-C does not wait for Python to take its turn

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self._previous_handlers:
            self._hold_signals()
        due = time.monotonic() - self._last_save >= self._every_seconds
        due |= self._every_steps > 0 and self._log.step % self._every_steps == 0
        due &= not self._log.bad_steps  # what a run goes back to lies before the bad steps
        # At the end of an epoch validation comes first, so that no checkpoint lies between the two.
        if (due or self._signal) and not self._at_epoch_end(batch):
            self.save()
            self._stop_if_asked()

    def on_test_begin(self, logs: Any = None) -> None:
        # Validation is about to clear the epoch's sums and use the metrics for its own.
        self._train_sums = {name: variable.numpy() for name, variable in model_variables(self.model, "metric").items()}

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._signal:
            restore_variables(model_variables(self.model, "metric"), self._train_sums)
            self.save()
            self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._signal or time.monotonic() - self._last_save >= 60:
            self.save()
            self._stop_if_asked()

    def on_train_end(self, logs: Any = None) -> None:
        self.save()
        self._stop_if_asked()

    def save(self) -> None:
        try:
            with as_os_error(safetensors.SafetensorError):
                save_checkpoint(
                    self._run.checkpoints_path,
                    self.progress(),
                    model_variables(self.model),
                    self._keep,
                    self._run.model_path,
                )
        except NonFiniteLoss:
            if not self._signal:  # else the run stops, and goes on from the checkpoint before
                raise
        self._last_save = time.monotonic()

    def _at_epoch_end(self, batch: int) -> bool:
        return batch + 1 == self._steps_per_epoch or self.model.stop_training

    def _stop_if_asked(self) -> None:
        if self._signal:
            name = signal.Signals(self._signal).name
            raise Interrupted(
                f"{name} at step {self._log.step}: stopped after a checkpoint; continue with --resume {self._run.path}",
                self._signal,
            )
