"""TensorBoard event files, derived from the run's events. A resumed run writes them again from the start."""

import shutil
from pathlib import Path

import tensorflow as tf

from tf_mlm.errors import as_os_error
from tf_mlm.run.events import EpochEvent, Event, Events, StepEvent

_NOT_CURVES = ("event", "epoch", "step")
_PREFIXES = {"step": "", "epoch": "epoch_"}


class TensorBoardFiles:
    """Writes the numbers of each event as scalars: validation metrics to validation/, the others to train/.

    In train/, the values of an epoch are named epoch_..., to distinguish them from those of its last step.
    """

    def __init__(self, folder: Path, events: Events):
        shutil.rmtree(folder, ignore_errors=True)
        self._writers = {name: tf.summary.create_file_writer(str(folder / name)) for name in ("train", "validation")}
        for event in events:
            self.write(event)

    def write(self, event: Event) -> None:
        with as_os_error(tf.errors.OpError):
            self._write(event)

    def _write(self, event: Event) -> None:
        with self._writers["validation"].as_default(step=event.step):
            for name, value in (event.validation or {}).items():
                if _fits_float32(value):
                    tf.summary.scalar(name, value)
        if isinstance(event, StepEvent | EpochEvent):
            with self._writers["train"].as_default(step=event.step):
                for name, value in event.as_dict().items():
                    if name not in _NOT_CURVES and not name.startswith("val_") and _fits_float32(value):
                        tf.summary.scalar(_PREFIXES[event.kind] + name, value)
        if not isinstance(event, StepEvent):
            for writer in self._writers.values():
                writer.flush()

    def __enter__(self) -> "TensorBoardFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers.values():
            writer.close()


def _fits_float32(value: object) -> bool:
    """Whether the value fits in float32, which TensorBoard stores. A perplexity can be larger."""
    return isinstance(value, int | float) and abs(value) <= float(tf.float32.max)
