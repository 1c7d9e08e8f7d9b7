"""A small end-to-end run for the tests: 30 steps on the sample, in seconds."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tf_mlm.commands.main import train_main

# 155 sequences at batch size 16: the tenth and last batch of an epoch has 11 rows and 5 filler rows. In validation, 60
# sequences give 4 filler rows. No epoch ends and no interruption occurs at one of the logged steps, every fourth one.
TINY = """
[model]
name = ""
vocab_size = 300
n_layers = 1
dim = 32
n_heads = 2
hidden_dim = 64

[data]
dataset = "sample"
sequence_length = 32
num_train_sequences = 155
num_validation_sequences = 60

[optimizer]
learning_rate = 5e-3

[training]
epochs = 3
batch_size = 16
precision = "float32"
log_every = 4
seed = 7
example_sentences = ["This is a [MASK] film.", "The [MASK] was [MASK]."]
"""
STEPS_PER_EPOCH = 10
TIMES = ("tokens_per_second", "seconds", "matmul_peak_tokens_per_second", "mfu")


def train(folder: Path, *flags: str, name: str = "tiny") -> int:
    """Run `python train.py --config tiny.toml FLAGS` in `folder`, in this process. Returns the exit code."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(TINY)
    with inside(folder):
        return train_main(["--config", f"{name}.toml", *flags])


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Change the working directory; restore it and the global precision policy at the end."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        import tf_keras

        tf_keras.mixed_precision.set_global_policy("float32")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without times, the only values that differ between two runs of one command."""
    return [{name: value for name, value in event.items() if name not in TIMES} for event in events]
