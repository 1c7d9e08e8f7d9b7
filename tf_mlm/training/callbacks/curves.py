"""Redraws the curves of a run after each epoch."""

from typing import Any

import tf_keras as keras
from tqdm.auto import tqdm

from tf_mlm.atomic_files import write_atomically
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.plotting import plot_loss


class Curves(keras.callbacks.Callback):
    """Writes history.csv, loss.png, loss.svg and the curve in plots/."""

    def __init__(self, run: RunDirectory):
        super().__init__()
        self._run = run
        self._has_warned = False

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
        except OSError as error:  # only a second copy: the run continues
            if not self._has_warned:
                tqdm.write(f"{curve}: cannot be written: {error.strerror}; the curve is in {self._run.path}/loss.png")
            self._has_warned = True
