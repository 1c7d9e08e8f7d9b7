"""TensorBoard event files, derived from the run's events, so that a resumed run can write them anew from the start."""

import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

_NOT_CURVES = ("event", "epoch", "step")


class TensorBoardFiles:
    """Writes each event's numbers as scalars, under train/ (step events) and validation/ (start and epoch events)."""

    def __init__(self, folder: Path, events: list[dict[str, Any]]):
        shutil.rmtree(folder, ignore_errors=True)
        self._writers = {name: tf.summary.create_file_writer(str(folder / name)) for name in ("train", "validation")}
        for event in events:
            self.write(event)

    def write(self, event: dict[str, Any]) -> None:
        with self._writers["train" if event["event"] == "step" else "validation"].as_default(step=event["step"]):
            for name, value in event.items():
                if name not in _NOT_CURVES and isinstance(value, int | float):
                    tf.summary.scalar(name.removeprefix("val_"), value)
        if event["event"] != "step":
            for writer in self._writers.values():
                writer.flush()

    def __enter__(self) -> "TensorBoardFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers.values():
            writer.close()
