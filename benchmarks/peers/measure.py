"""Arguments, clock and output of all workers of `throughput.py`.

Imports only the standard library, numpy and psutil, because each worker uses another framework.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil


def parse_arguments(*more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """The arguments of a worker; `more` has the additional flags of one worker with their options for argparse."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="directory with config.json and tokenizer")
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
    """Measures each step after the warm-up, from the end of the previous step, so that input is included."""

    def __init__(self, warmup: int, steps: int):
        self.total_steps = warmup + steps
        self._warmup = warmup
        self._ends: list[float] = []
        self._losses: list[float] = []

    def step_ended(self, loss: float) -> None:
        """`loss` is a Python number, which is available only when the step has finished."""
        self._ends.append(time.perf_counter())
        self._losses.append(loss)

    def report(self, **more: object) -> None:
        seconds = np.diff(self._ends[self._warmup - 1 :]).tolist()
        peak_bytes = peak_memory_bytes()
        print(json.dumps({"seconds": seconds, "losses": self._losses, "peak_bytes": peak_bytes, **more}), flush=True)


def peak_memory_bytes() -> int:
    """The peak resident memory of this process; the current one on systems that do not report the peak."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), memory.rss)


def keras_callback(base: type, clock: StepClock) -> object:
    """A Keras callback that calls `clock` at the end of every batch; `base` is the Callback class of that Keras."""

    def on_train_batch_end(self: object, batch: int, logs: dict[str, float]) -> None:
        clock.step_ended(float(logs["loss"]))

    return type("Clock", (base,), {"on_train_batch_end": on_train_batch_end})()
