"""Shows the progress of training on stderr."""

import sys
import time
from typing import Any

import tf_keras as keras
from tqdm.auto import tqdm

from tf_mlm.model.metrics import LOSS, find_metric
from tf_mlm.run.events import EpochEvent, Event, StepEvent


class ProgressLines(keras.callbacks.Callback):
    """A progress bar if stderr is a terminal or in a notebook, otherwise one plain line per event."""

    def __init__(self, num_train_steps: int, epochs: int, first_step: int):
        super().__init__()
        self._supports_tf_logs = True
        self._epochs = epochs
        self._num_train_steps = num_train_steps
        self._first_step = first_step
        self._start = time.monotonic()
        self._bar = tqdm(
            total=num_train_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True, leave=False
        )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._bar.update()

    def close(self) -> None:
        self._bar.close()

    def show(self, event: Event) -> None:
        """Report a step or an epoch."""
        if isinstance(event, StepEvent):
            loss, speed = f"loss {LOSS.show(event.loss)}", _speed(event)
            self._bar.set_postfix_str(f"{loss}, {speed}")
            if not self._bar.disable:
                return
            text = (
                f"step {event.step}/{self._num_train_steps}  epoch {event.epoch}/{self._epochs}  {loss}  "
                f"rate {event.learning_rate:.3g}  {speed}  {self._time_left(event.step)} left"
            )
        elif isinstance(event, EpochEvent):
            validation = event.validation or {}
            metrics = filter(None, map(find_metric, validation))
            values = "  ".join(f"val_{metric.name} {metric.show(validation[metric.name])}" for metric in metrics)
            if event.second_validation:
                values += f"  second_val_loss {LOSS.show(event.second_validation.get(LOSS.name))}"
            text = (
                f"epoch {event.epoch}/{self._epochs}  loss {LOSS.show(event.loss)}  {values}  "
                f"{_speed(event)}  {self._time_left(event.step)} left"
            )
        else:
            return
        tqdm.write(text, file=sys.stderr)

    def _time_left(self, step: int) -> str:
        rate = (time.monotonic() - self._start) / max(step - self._first_step, 1)
        seconds = round(rate * (self._num_train_steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _speed(event: StepEvent | EpochEvent) -> str:
    speed = f"{event.tokens_per_second or 0:,.0f} tokens/s"
    return speed if event.mfu is None else f"{speed} ({event.mfu:.0%} MFU)"
