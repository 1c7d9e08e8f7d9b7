"""The callbacks of one `model.fit`, in order, and the files and signal handlers that they use."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from tf_mlm.errors import Interrupted, NonFiniteLoss
from tf_mlm.model.metrics import metric_results, metric_values
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.tensorboard import TensorBoardFiles
from tf_mlm.training.callbacks.best_model import BestModel
from tf_mlm.training.callbacks.checkpoints import Checkpoints
from tf_mlm.training.callbacks.curves import Curves
from tf_mlm.training.callbacks.early_stopping import EarlyStopping
from tf_mlm.training.callbacks.metrics_log import MetricsLog
from tf_mlm.training.callbacks.progress_lines import ProgressLines
from tf_mlm.training.callbacks.resumed_epoch import ResumedEpoch
from tf_mlm.training.callbacks.stop_signals import StopSignals
from tf_mlm.training.job import Job


class FitContext:
    """One call of `fit`, starting at `progress`. The context manager closes files and restores signal handlers.

    Attributes:
        callbacks: callbacks for `model.fit`, in the order in which Keras calls them.
    """

    def __init__(self, job: Job, progress: Progress, user_callbacks: Sequence[keras.callbacks.Callback] = ()):
        config, run, length = job.config, job.run, job.length
        events = run.read_events()
        self._job, self._first = job, progress
        self._lines = ProgressLines(length.num_train_steps, length.epochs, progress.step)
        self._board = TensorBoardFiles(run.tensorboard_path, events)
        self._signals = StopSignals()
        self._curves = Curves(run)
        is_chief = job.machine.is_chief
        log = MetricsLog(
            [run.append_event, self._board.write, *([self._lines.show] if is_chief else [])],
            progress=progress,
            schedule=job.schedule,
            count_tokens=lambda first, end: job.count_tokens(progress, first, end),
            positions_per_step=config.training.batch_size * config.data.sequence_length,
            steps_per_epoch=length.steps_per_epoch,
            num_train_steps=length.num_train_steps,
            log_every=config.training.log_every,
            max_bad_steps=config.training.max_bad_steps,
            objective=config.objective.name,
            matmul_peak=events.start.matmul_peak_tokens_per_second if events.start else None,
            evaluate_second=self._evaluate_second,
        )
        self._checkpoints = Checkpoints(
            run,
            log,
            self._signals,
            config.checkpoint,
            steps_per_epoch=length.steps_per_epoch,
            progress=progress,
            machine=job.machine,
            stream_position=lambda batch: job.data.position_before(config, batch),
        )
        best_model = BestModel(run.model_path, job.tokenizer, events.best.val_loss if events.best else math.inf)
        self.callbacks = [
            ResumedEpoch(progress, length.steps_per_epoch, job.model),  # first: the log reads the restored sums
            log,  # writes the events that the callbacks below read
            *([best_model, self._curves] if is_chief else []),
            self._lines,
            EarlyStopping(run, config.training.early_stopping_patience),
            *user_callbacks,
            self._checkpoints,  # last: a checkpoint includes the effects of all others; a signal ends the run after it
        ]

    def _evaluate_second(self) -> dict[str, float | None] | None:
        # A signal stops this validation like the first one. The resumed run repeats both.
        stop = keras.callbacks.LambdaCallback(on_test_batch_end=self._checkpoints.on_test_batch_end)
        return self._job.evaluate_second([stop])

    def __enter__(self) -> "FitContext":
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self._lines))
            stack.enter_context(self._board)
            stack.enter_context(self._signals)
            if self._first.metrics_bytes == 0:
                self._checkpoints.set_model(self._job.model)
                self._checkpoints.save()  # so that a run can always roll back
            if (self._job.run.path / "loss.png").exists():
                self._curves.draw()  # it may show events that were cut
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        with self._stack:
            if isinstance(error, Interrupted | NonFiniteLoss) and self._job.machine.is_chief:
                self._curves.draw()
            if isinstance(error, NonFiniteLoss):
                error.progress = self.progress()
            if error is not None and self._job.data.read_error is not None:
                self._checkpoints.save()  # the data failed, not the model
        if error is None:
            self._signals.raise_if_received(self.progress().step, self._job.run.path)  # since the last step

    def progress(self) -> Progress:
        """The progress of the run."""
        return self._checkpoints.progress()

    def finish_epoch(self) -> None:
        """Validate the last epoch if all its updates were made before the run was stopped."""
        job, step = self._job, self._first.step
        epochs = job.run.read_events().epochs
        is_epoch_end = step % job.length.steps_per_epoch == 0 or step == job.length.num_train_steps
        if not step or not is_epoch_end or (epochs and epochs[-1].step >= step):
            return
        logs = metric_values(metric_results(job.model), objective=job.config.objective.name)
        every = keras.callbacks.CallbackList(self.callbacks, model=job.model)
        every.on_epoch_begin(len(epochs))
        results = job.evaluate(callbacks=every)
        every.on_epoch_end(len(epochs), logs | {f"val_{name}": value for name, value in results.items()})

    def is_complete(self) -> bool:
        """Whether all updates have been made."""
        config, length = self._job.config.training, self._job.length
        has_stopped_early = self._job.run.read_events().has_stopped_early(config.early_stopping_patience)
        return self._first.step >= length.num_train_steps or has_stopped_early
