"""Restores the metric sums of an epoch that is resumed in the middle."""

from typing import Any

import tf_keras as keras

from tf_mlm.run.checkpoint import Progress, model_variables, restore_variables


class ResumedEpoch(keras.callbacks.Callback):
    """Keeps the current metric sums of `model` and restores them after Keras clears them at the start of the epoch."""

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
