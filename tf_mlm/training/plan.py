"""What a run will do, in steps, tokens, rates, memory and time, known before anything is trained."""

import resource
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import tf_keras as keras

from tf_mlm.config import Config
from tf_mlm.data.masking import num_slots
from tf_mlm.data.pipeline import steps_per_epoch
from tf_mlm.data.prepared import PreparedData
from tf_mlm.model import matmul_peak
from tf_mlm.model.optimizer import build_schedule, num_warmup_steps
from tf_mlm.run.directory import describe_bytes, free_bytes

_TRIAL_STEPS = 5
_SMALL_FILES_BYTES = 2 * 2**20  # curves, card, tokenizer, events, the SavedModel's graph
_LOGITS_COPIES = 10  # float32 arrays of that size alive at once: logits, their gradient, softmax; as measured


@dataclass(frozen=True)
class RunLength:
    """Durations, turned into updates once.

    Attributes:
        epochs: passes begun; the last one is cut short where `training.num_train_steps` says so.
    """

    epochs: int
    steps_per_epoch: int
    num_train_steps: int
    num_warmup_steps: int

    @classmethod
    def of(cls, config: Config, num_sequences: int) -> "RunLength":
        """Raises Refused where the warmup leaves nothing of the training."""
        per_epoch = steps_per_epoch(num_sequences, config.training.batch_size)
        num_train_steps = config.training.num_train_steps or config.training.epochs * per_epoch
        return cls(
            epochs=-(-num_train_steps // per_epoch),
            steps_per_epoch=per_epoch,
            num_train_steps=num_train_steps,
            num_warmup_steps=num_warmup_steps(config.optimizer, num_train_steps),
        )


def describe_plan(config: Config, length: RunLength, model: Any, precision: str, run_path: Path) -> str:
    """Steps, tokens, schedule, memory and disk, in lines for a reader."""
    schedule = build_schedule(config.optimizer, length.num_train_steps)
    points = sorted({0, length.num_warmup_steps, length.num_train_steps // 2, length.num_train_steps - 1})
    rates = ", ".join(f"{float(schedule(step)):.3g} at step {step + 1:,}" for step in points)
    tokens = config.training.batch_size * config.data.sequence_length
    cut = ", the last one cut short" if length.num_train_steps < length.epochs * length.steps_per_epoch else ""
    return "\n".join(
        [
            f"steps      {length.num_train_steps:>10,} = {length.epochs} epochs of {length.steps_per_epoch:,}{cut}, "
            f"batch {config.training.batch_size}, warmup {length.num_warmup_steps:,}",
            f"tokens     {length.num_train_steps * tokens:>10,} seen in training, {tokens:,} a step",
            f"rate       {rates}",
            f"parameters {model.count_params():>10,}",
            f"memory     {_memory_bytes(config, model, precision) / 2**30:>10.1f} GiB at the peak, estimated",
            f"disk       {describe_bytes(disk_bytes(config, model)):>10} at the peak, for {config.checkpoint.keep + 1} "
            f"checkpoints and the model; {describe_bytes(free_bytes(run_path))} free",
        ]
    )


def disk_bytes(config: Config, model: Any) -> int:
    """What the run directory holds at its largest, while one more checkpoint is written than are kept.

    More than at the end, when the SavedModel is there as well.
    """
    weights = 4 * model.count_params()
    checkpoint = 4 * weights  # with Adam's two moments, and what was the best model then
    return (config.checkpoint.keep + 1) * checkpoint + weights + _SMALL_FILES_BYTES


def _memory_bytes(config: Config, model: Any, precision: str) -> float:
    """Weights, gradients before and after clipping, Adam's moments; activations kept for the backward pass; logits."""
    dim, n_layers = model.config.hidden_size, model.config.num_hidden_layers
    sequences = config.training.batch_size / config.training.accumulate_steps
    positions = sequences * config.data.sequence_length
    activation_bytes = 4 if precision == "float32" else 2
    # Per layer and position about 34 dim-wide values are kept (Korthikanti et al. 2022, equation 1), and the attention
    # scores of each head.
    per_layer = positions * dim * (34 / 2) * activation_bytes
    per_layer += (
        5 / 2 * activation_bytes * model.config.num_attention_heads * sequences * config.data.sequence_length**2
    )
    slots = sequences * num_slots(config.data.sequence_length, config.masking.mlm_probability)
    logits = _LOGITS_COPIES * 4 * slots * model.config.vocab_size
    runtime = 0.8 * 2**30  # TensorFlow and the libraries themselves, as measured
    return (20 if precision == "float32" else 22) * model.count_params() + n_layers * per_layer + logits + runtime


def measure_matmul_peak(config: Config, model: Any, precision: str) -> float:
    """Tokens a second that the matrix products of the training step alone would allow here, measured now."""
    sequences, length = config.training.batch_size, config.data.sequence_length
    products = matmul_peak.step_products(
        model.config, sequences, length, num_slots(length, config.masking.mlm_probability)
    )
    return round(sequences * length / matmul_peak.measure_matmul_peak(products, precision), 1)


@dataclass(frozen=True)
class Trial:
    """Seconds, by the clock, of one training step and of one validation; peak memory of the process, in bytes."""

    step_seconds: float
    validation_seconds: float
    peak_bytes: int


class _Clock(keras.callbacks.Callback):
    """When each batch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.monotonic())

    on_test_batch_end = on_train_batch_end

    def median_seconds(self) -> float:
        """Of a step; the first two are left out, since in them the step is traced and compiled."""
        return median(b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False))


def run_trial(config: Config, model: Any, tokenizer: Any, data: PreparedData) -> Trial:
    """Train a few steps and validate a few batches. The model is of no use afterwards."""
    training, validation = _Clock(), _Clock()
    model.fit_from(0, _TRIAL_STEPS, x=data.train_dataset(config, tokenizer, epochs=1), epochs=1, callbacks=[training])
    validation_batches = data.validation_dataset(config, tokenizer).repeat()
    model.evaluate(validation_batches, steps=_TRIAL_STEPS, verbose=0, callbacks=[validation])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    num_batches = steps_per_epoch(len(data.validation_rows), config.training.batch_size)
    return Trial(training.median_seconds(), validation.median_seconds() * num_batches, peak)


def describe_trial(config: Config, length: RunLength, trial: Trial) -> str:
    """Rate, time of the whole run and memory, in lines for a reader."""
    training = length.num_train_steps * trial.step_seconds
    validation = (length.epochs + 1) * trial.validation_seconds  # once before training
    rate = config.training.batch_size * config.data.sequence_length / trial.step_seconds
    return "\n".join(
        [
            f"speed      {rate:>10,.0f} tokens/s in {_TRIAL_STEPS} trial steps, {trial.step_seconds:.3g} s a step",
            f"time       {_duration(training + validation):>10} = {_duration(training)} of training and "
            f"{_duration(validation)} of validation",
            f"memory     {trial.peak_bytes / 2**30:>10.1f} GiB at the peak of the trial, on the host",
        ]
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
