"""Saves checkpoints, and stops training after a checkpoint if a signal was received."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import safetensors
import tf_keras as keras

from tf_mlm.config import CheckpointConfig
from tf_mlm.errors import NonFiniteLoss, as_os_error
from tf_mlm.model.stop_request import STOP_REQUEST
from tf_mlm.run.checkpoint import Progress, model_variables, restore_variables, save_checkpoint
from tf_mlm.run.directory import RunDirectory
from tf_mlm.runtime import Machine
from tf_mlm.training.callbacks.metrics_log import MetricsLog
from tf_mlm.training.callbacks.stop_signals import StopSignals


class Checkpoints(keras.callbacks.Callback):
    """Saves a checkpoint at the intervals of `config`, and on SIGINT or SIGTERM.

    Before the first step there is nothing to save, and a signal ends the process immediately. With several
    workers, only the chief saves. A signal to one worker stops all workers after the same step.

    Args:
        progress: progress of the run before this `fit`.
        stream_position: maps the number of a batch to its `Progress.stream`.
    """

    def __init__(
        self,
        run: RunDirectory,
        log: MetricsLog,
        signals: StopSignals,
        config: CheckpointConfig,
        *,
        steps_per_epoch: int,
        progress: Progress,
        machine: Machine,
        stream_position: Callable[[int], dict[str, Any] | None],
    ):
        super().__init__()
        self._supports_tf_logs = True
        self._run = run
        self._log = log
        self._signals = signals
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self._before = progress
        self._machine = machine
        self._stream_position = stream_position
        self._start = self._last_save = time.monotonic()

    def progress(self) -> Progress:
        """The progress of the run."""
        log = self._log
        progress = replace(
            self._before,
            step=log.step,
            logged_sums=log.logged_sums,
            metrics_bytes=self._run.metrics_path.stat().st_size,
            seconds=self._before.seconds + time.monotonic() - self._start,
            epoch_seconds=log.epoch_seconds,
            skipped_steps=log.skipped_steps,
            bad_steps=log.bad_steps,
        )
        return replace(progress, stream=self._stream_position(progress.next_batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._signals.handle()
        must_stop = self._must_stop(logs)
        is_due = time.monotonic() - self._last_save >= self._config.every_minutes * 60
        is_due |= self._config.every_steps > 0 and self._log.step % self._config.every_steps == 0
        is_due &= not self._log.bad_steps  # a rollback needs a checkpoint from before the bad steps
        # At the end of an epoch, validation comes first, so that no checkpoint is saved before it.
        if (is_due or must_stop) and not self._is_epoch_end(batch):
            self.save()
            self._stop_if(must_stop)

    def on_test_begin(self, logs: Any = None) -> None:
        # Validation clears the sums of the epoch and reuses the metrics.
        self._train_sums = {name: variable.numpy() for name, variable in model_variables(self.model, "metric").items()}

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._must_stop(logs):
            restore_variables(model_variables(self.model, "metric"), self._train_sums)
            self.save()
            self._stop_if(True)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # Several workers stop only after a step, in which they exchange their requests to stop.
        must_stop = self._machine.num_workers == 1 and bool(self._signals.received)
        if must_stop or time.monotonic() - self._last_save >= 60:
            self.save()
            self._stop_if(must_stop)

    def on_train_end(self, logs: Any = None) -> None:
        self.save()
        self._stop_if(bool(self._signals.received))

    def save(self) -> None:
        """Save a checkpoint, if this worker is the chief."""
        if not self._machine.is_chief:
            return
        try:
            with as_os_error(safetensors.SafetensorError):
                save_checkpoint(
                    self._run.checkpoints_path,
                    self.progress(),
                    model_variables(self.model),
                    self._config.keep,
                    self._run.model_path,
                )
        except NonFiniteLoss:
            if not self._signals.received:  # after a signal, the run stops and resumes from the previous checkpoint
                raise
        self._last_save = time.monotonic()

    def _is_epoch_end(self, batch: int) -> bool:
        return batch + 1 == self._steps_per_epoch or self.model.stop_training

    def _must_stop(self, logs: Any) -> bool:
        """Whether a signal was received. With several workers, `logs` has the requests of all workers in the step."""
        if self._machine.num_workers == 1:
            return bool(self._signals.received)
        if self._signals.received:
            self.model.stop_request.make()
        return float(logs[STOP_REQUEST]) > 0

    def _stop_if(self, must_stop: bool) -> None:
        if must_stop:
            self._signals.received = self._signals.received or signal.SIGTERM  # another worker received it
            self._signals.raise_if_received(self._log.step, self._run.path if self._machine.is_chief else "RUN")
