"""Saves the model with the lowest validation loss to `model/`."""

import math
from pathlib import Path
from typing import Any

import safetensors
import tf_keras as keras

from tf_mlm.atomic_files import atomic_directory
from tf_mlm.errors import as_os_error
from tf_mlm.model.saving import save_model


class BestModel(keras.callbacks.Callback):
    """Saves the model whenever the validation loss reaches a new minimum.

    Args:
        directory: directory of the saved model; replaced atomically.
        best_val_loss: lowest validation loss so far; None if there is none.
    """

    def __init__(self, directory: Path, tokenizer: Any, best_val_loss: float | None):
        super().__init__()
        self._directory = directory
        self._tokenizer = tokenizer
        self._best = math.inf if best_val_loss is None else best_val_loss

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs["val_loss"] < self._best:
            self._best = float(logs["val_loss"])
            save_best_model(self.model, self._tokenizer, self._directory)


def save_best_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Replace `directory` with the model and its tokenizer.

    Raises:
        OSError: the files cannot be written.
    """
    with as_os_error(safetensors.SafetensorError), atomic_directory(directory) as temporary:
        save_model(model, tokenizer, temporary)
