"""TensorBoard event files, derived from the run's events. A resumed run writes them again from the start."""

import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_mlm.errors import as_os_error
from tf_mlm.run.events import EpochEvent, Event, Events, StepEvent

_NOT_CURVES = ("event", "epoch", "step")
_PREFIXES = {"step": "", "epoch": "epoch_"}


class TensorBoardFiles:
    """Writes the numbers of each event as scalars, to validation/, second_validation/ and train/.

    In train/, the values of an epoch are named epoch_..., to distinguish them from those of its last step.
    """

    def __init__(self, folder: Path, events: Events):
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        self._writers: dict[str, Any] = {}
        for event in events:
            self.write(event)

    def write(self, event: Event) -> None:
        with as_os_error(tf.errors.OpError):
            self._write(event)

    def _write(self, event: Event) -> None:
        for directory in ("validation", "second_validation"):
            if values := getattr(event, directory):
                with self._writer(directory).as_default(step=event.step):
                    for name, value in values.items():
                        if _fits_float32(value):
                            tf.summary.scalar(name, value)
        if isinstance(event, StepEvent | EpochEvent):
            with self._writer("train").as_default(step=event.step):
                for name, value in event.as_dict().items():
                    is_validation = name.startswith(("val_", "second_val_"))
                    if name not in _NOT_CURVES and not is_validation and _fits_float32(value):
                        tf.summary.scalar(_PREFIXES[event.kind] + name, value)
        if not isinstance(event, StepEvent):
            for writer in self._writers.values():
                writer.flush()

    def _writer(self, directory: str) -> Any:
        if directory not in self._writers:
            self._writers[directory] = tf.summary.create_file_writer(str(self._folder / directory))
        return self._writers[directory]

    def __enter__(self) -> "TensorBoardFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers.values():
            writer.close()


def _fits_float32(value: object) -> bool:
    """Whether the value fits in float32, which TensorBoard stores. A perplexity can be larger."""
    return isinstance(value, int | float) and abs(value) <= float(tf.float32.max)
