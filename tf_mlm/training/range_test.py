"""A range test of the learning rate: training with a rate that grows at every step, on a model that is discarded."""

import contextlib
import math
import time
from typing import Any

import numpy as np
import tf_keras as keras

from tf_mlm.errors import Refused
from tf_mlm.model.metrics import total_and_count
from tf_mlm.run.events import StepEvent
from tf_mlm.run.range_test_results import Curve, RangeTestResults
from tf_mlm.training.callbacks.progress_lines import ProgressLines
from tf_mlm.training.job import Job


def range_test(job: Job, *, num_steps: int, min_learning_rate: float, max_learning_rate: float) -> RangeTestResults:
    """Train `job.model` on the batches of its training, at a rate that grows exponentially, until the loss blows up.

    Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3, which increases the rate
    linearly. The model must not be used afterwards. No file is written.

    Args:
        num_steps: number of steps from `min_learning_rate` to `max_learning_rate`, over as many epochs as necessary.

    Raises:
        Refused: the loss is not finite from the first step on.
    """
    config = job.config
    rates = np.geomspace(min_learning_rate, max_learning_rate, num_steps).tolist()
    job.model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
        min_learning_rate, decay_steps=num_steps - 1, decay_rate=max_learning_rate / min_learning_rate
    )
    epochs = math.ceil(num_steps / job.length.steps_per_epoch)
    with job.reporting_read_errors(), contextlib.closing(ProgressLines(num_steps, epochs, first_step=0)) as lines:
        recorder = _StepLosses(job, rates, lines)
        job.model.fit(
            job.data.train_dataset(config, job.tokenizer, epochs),
            steps_per_epoch=num_steps,
            callbacks=[recorder, lines],
            verbose=0,
        )
    losses = recorder.losses
    if not np.isfinite(losses).any():
        raise Refused(
            f"model.name = {config.model.name!r}: the loss is not finite at a learning rate of {rates[0]:.3g}, because "
            "the weights are damaged or too large; choose another model, or set training.precision = 'float32'"
        )
    return RangeTestResults(
        model=config.model.name,
        dataset=config.data.dataset,
        objective=config.objective.name,
        batch_size=config.training.batch_size,
        precision=job.machine.precision.name,
        seed=config.training.seed,
        num_steps=num_steps,
        rates=rates[: len(losses)],
        losses=losses,
        config_rate=config.optimizer.learning_rate,
    )


class _StepLosses(keras.callbacks.Callback):
    """Records the loss of each step as in `Curve`, and stops `fit` when it diverges."""

    def __init__(self, job: Job, rates: list[float], lines: ProgressLines):
        super().__init__()
        self._supports_tf_logs = True
        self._job = job
        self._rates = rates
        self._lines = lines
        self._bad_steps = 0
        self._last_time = time.monotonic()
        self.losses: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        is_bad = float(logs["bad_step"]) > 0
        total, count = total_and_count(self.model.metrics[0])
        self.model.reset_metrics()  # otherwise the metrics are averaged over the steps
        # With float16, a step that only lowers the loss scale has no count and is not bad.
        self.losses.append(total / count if count else math.inf if is_bad else math.nan)
        self._bad_steps = self._bad_steps + 1 if is_bad else 0
        if batch % self._job.config.training.log_every == self._job.config.training.log_every - 1:
            self._log(batch)
        has_stopped = self._bad_steps >= self._job.config.training.max_bad_steps
        if (
            has_stopped
            or np.isfinite(self.losses).any()
            and Curve(np.array(self.losses), len(self._rates)).is_diverging
        ):
            self.model.stop_training = True

    def _log(self, batch: int) -> None:
        every, now = self._job.config.training.log_every, time.monotonic()
        finite = [loss for loss in self.losses[-every:] if math.isfinite(loss)]
        tokens = self._job.data.count_tokens(self._job.config, batch + 1 - every, batch + 1)
        self._lines.show(
            StepEvent(
                step=batch + 1,
                epoch=batch // self._job.length.steps_per_epoch + 1,
                loss=float(np.mean(finite)) if finite else None,
                learning_rate=self._rates[batch],
                skipped_steps=int(np.isinf(self.losses).sum()),
                tokens_per_second=tokens / (now - self._last_time),
            )
        )
        self._last_time = now
