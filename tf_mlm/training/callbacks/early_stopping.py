"""Stops training when the validation loss no longer improves."""

from typing import Any

import tf_keras as keras

from tf_mlm.run.directory import RunDirectory


class EarlyStopping(keras.callbacks.Callback):
    """Stops after `patience` epochs without a lower validation loss; 0 never stops.

    Keras' callback keeps a counter that a resumed run would lose. This one reads the events of the run.
    """

    def __init__(self, run: RunDirectory, patience: int):
        super().__init__()
        self._run = run
        self._patience = patience

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._run.read_events().has_stopped_early(self._patience):
            self.model.stop_training = True
