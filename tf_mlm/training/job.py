"""The objects shared by the steps of one training."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tensorflow as tf

from tf_mlm import runtime
from tf_mlm.config import Config
from tf_mlm.data.pipeline import Share, steps_per_epoch
from tf_mlm.data.prepared import MaskedData, PreparedData
from tf_mlm.errors import Refused
from tf_mlm.model.metrics import metric_values
from tf_mlm.model.optimizer import WarmUp, build_schedule
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.events import finite_or_none
from tf_mlm.training.length import RunLength
from tf_mlm.training.objectives.base import Objective
from tf_mlm.training.objectives.table import OBJECTIVES


@dataclass(frozen=True)
class Job:
    """One training: its settings, its run directory and all objects that were loaded and built for it.

    Attributes:
        newly_initialized: names of the weights that are missing from the starting checkpoint.
    """

    config: Config
    run: RunDirectory
    machine: runtime.Machine
    tokenizer: Any
    data: PreparedData
    model: Any
    newly_initialized: list[str]
    length: RunLength

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.config.objective.name]

    @cached_property
    def schedule(self) -> WarmUp:
        return build_schedule(self.config.optimizer, self.length.num_train_steps)

    @cached_property
    def validation_dataset(self) -> Any:
        dataset = self.data.validation_dataset(self.config, self.tokenizer, self._share)
        # With a finite dataset, the workers would check at each step whether all of them have another batch.
        return self._distribute(dataset.repeat()) if self._share else dataset

    @property
    def validation_steps(self) -> int | None:
        """Number of validation batches; None if the dataset is finite."""
        num_rows, batch_size = len(self.data.validation_rows), self.config.training.batch_size
        return steps_per_epoch(num_rows, batch_size) if self._share else None

    def evaluate(self, **options: Any) -> dict[str, float]:
        """Validate the model. Returns the logs of Keras' `evaluate`."""
        return self.model.evaluate(
            self.validation_dataset, steps=self.validation_steps, verbose=0, return_dict=True, **options
        )

    def evaluate_second(self, callbacks: Sequence[Any] = ()) -> dict[str, float | None] | None:
        """The metrics on the second validation dataset; None if there is none."""
        if not isinstance(self.data, MaskedData) or self.data.second_validation is None:
            return None
        steps = steps_per_epoch(len(self.data.second_validation.rows), self.config.training.batch_size)
        logs = self.model.evaluate(
            self._second_dataset, steps=steps, verbose=0, return_dict=True, callbacks=list(callbacks)
        )
        self.model.reset_metrics()  # a checkpoint must not contain a sum that is not finite
        return {name: finite_or_none(value) for name, value in metric_values(logs).items()}

    @cached_property
    def _second_dataset(self) -> Any:
        assert isinstance(self.data, MaskedData)
        dataset = self.data.second_validation_dataset(self.config, self.tokenizer, self._share).repeat()
        return self._distribute(dataset) if self._share else dataset

    @property
    def _share(self) -> Share | None:
        """The rows of each batch that this worker reads; None for all."""
        if self.machine.num_workers == 1:
            return None
        of_replica = self.config.training.batch_size // self.machine.strategy.num_replicas_in_sync
        of_worker = self.config.training.batch_size // self.machine.num_workers
        return Share(self.machine.worker * of_worker, (self.machine.worker + 1) * of_worker, of_replica)

    def _distribute(self, dataset: Any) -> Any:
        """The dataset of all workers; `dataset` has the rows of this worker, one batch per replica."""
        return self.machine.strategy.distribute_datasets_from_function(lambda context: dataset)

    @contextlib.contextmanager
    def reporting_read_errors(self) -> Iterator[None]:
        """Raise OSError if training data could not be read, which TensorFlow reports as an error of an operation."""
        try:
            yield
        except (Refused, tf.errors.OpError) as error:
            cause = self.data.read_error
            if not isinstance(cause, Refused | OSError):
                raise
            raise OSError(str(cause)) from error

    def train_dataset(self, progress: Progress) -> Any:
        """The remaining batches, starting after `progress`."""
        last_batch = progress.next_batch + self.length.num_train_steps - progress.step
        epochs = -(-last_batch // self.length.steps_per_epoch)
        self.data.continue_at(progress.stream)
        dataset = self.data.train_dataset(self.config, self.tokenizer, epochs, progress.next_batch, self._share)
        return self._distribute(dataset) if self._share else dataset

    def count_tokens(self, progress: Progress, first_step: int, end_step: int) -> int:
        """Real tokens of the updates `first_step` to `end_step` - 1, counted from 0, without padding.

        Args:
            progress: progress of the current `fit`; after a rollback, its batches are ahead of the steps.
        """
        ahead = progress.next_batch - progress.step
        return self.data.count_tokens(self.config, first_step + ahead, end_step + ahead)

    def tokens_seen(self, progress: Progress) -> int:
        """Real tokens of all updates of the run, without those undone by a rollback."""
        if progress.rolled_back is None:
            return self.data.count_tokens(self.config, 0, progress.step)
        bad_step, good_step = progress.rolled_back
        return self.data.count_tokens(self.config, 0, good_step) + self.data.count_tokens(
            self.config, bad_step, progress.next_batch
        )
