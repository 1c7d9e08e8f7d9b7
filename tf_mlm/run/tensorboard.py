"""TensorBoard event files, derived from the run's events, so that a resumed run can write them anew from the start."""

import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_mlm.errors import as_os_error

_NOT_CURVES = ("event", "epoch", "step")
_PREFIXES = {"step": "", "epoch": "epoch_"}


class TensorBoardFiles:
    """Writes each event's numbers as scalars, under validation/ what begins with val_, the rest under train/.

    There an epoch's numbers are named epoch_..., apart from those of its last step.
    """

    def __init__(self, folder: Path, events: list[dict[str, Any]]):
        shutil.rmtree(folder, ignore_errors=True)
        self._writers = {name: tf.summary.create_file_writer(str(folder / name)) for name in ("train", "validation")}
        for event in events:
            self.write(event)

    def write(self, event: dict[str, Any]) -> None:
        with as_os_error(tf.errors.OpError):
            self._write(event)

    def _write(self, event: dict[str, Any]) -> None:
        for name, value in event.items():
            if name in _NOT_CURVES or not isinstance(value, int | float):
                continue
            if name.startswith("val_"):
                with self._writers["validation"].as_default(step=event["step"]):
                    tf.summary.scalar(name.removeprefix("val_"), value)
            elif event["event"] in _PREFIXES:
                with self._writers["train"].as_default(step=event["step"]):
                    tf.summary.scalar(_PREFIXES[event["event"]] + name, value)
        if event["event"] != "step":
            for writer in self._writers.values():
                writer.flush()

    def __enter__(self) -> "TensorBoardFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers.values():
            writer.close()
