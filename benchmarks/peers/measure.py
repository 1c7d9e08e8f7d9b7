"""What every worker of `throughput.py` shares: its arguments, the clock, and the one line that it prints.

Imports nothing but the standard library and numpy, since each peer lives with another framework.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np


def parse_arguments(*more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """`more`: flags of one worker alone, and what argparse is to know of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json and tokenizer")
    parser.add_argument("--sequences", type=Path, help="int32 [num_sequences, length] .npy of ids")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    for flag, options in more:
        parser.add_argument(flag, **options)
    return parser.parse_args()


def load_sequences(arguments: argparse.Namespace) -> np.ndarray:
    return np.load(arguments.sequences, mmap_mode="r")


class StepClock:
    """Seconds of every step after the warm-up, from the end of one to the end of the next: input included."""

    def __init__(self, warmup: int, steps: int):
        self.total_steps = warmup + steps
        self._warmup = warmup
        self._ends: list[float] = []
        self._losses: list[float] = []

    def step_ended(self, loss: float) -> None:
        """`loss` is a Python number, so that the step has been waited for."""
        self._ends.append(time.perf_counter())
        self._losses.append(loss)

    def report(self, **more: object) -> None:
        seconds = np.diff(self._ends[self._warmup - 1 :]).tolist()
        # Linux counts in KiB.
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "losses": self._losses, "peak_bytes": peak_bytes, **more}), flush=True)


def keras_callback(base: type, clock: StepClock) -> object:
    """A Keras callback that stops `clock` at the end of every batch; `base` is the Callback class of that Keras."""

    def on_train_batch_end(self: object, batch: int, logs: dict[str, float]) -> None:
        clock.step_ended(float(logs["loss"]))

    return type("Clock", (base,), {"on_train_batch_end": on_train_batch_end})()
