"""Estimates the steps, tokens, learning rates, memory, disk space and time of a training."""

import contextlib
import math
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tf_keras as keras

from tf_mlm.data.masking import num_slots
from tf_mlm.data.pipeline import steps_per_epoch
from tf_mlm.data.prepared import MaskedData
from tf_mlm.model.matmul_peak import Product, step_products
from tf_mlm.run.checkpoint import load_checkpoint
from tf_mlm.run.directory import describe_bytes, free_bytes
from tf_mlm.training.fingerprint import fingerprint
from tf_mlm.training.job import Job

_TRIAL_STEPS = 5
_SMALL_FILES_BYTES = 2 * 2**20  # curves, model card, tokenizer, events, graph of the SavedModel
_LOGITS_COPIES = 10  # measured: float32 arrays of that size at one time, such as logits, their gradient and softmax


def describe_plan(job: Job) -> str:
    """Steps, tokens, schedule, memory and disk space, as lines of text."""
    config, length = job.config, job.length
    points = sorted({0, length.num_warmup_steps, length.num_train_steps // 2, length.num_train_steps - 1})
    rates = ", ".join(f"{float(job.schedule(step)):.3g} at step {step + 1:,}" for step in points)
    tokens = job.data.count_tokens(config, 0, length.num_train_steps)
    positions = config.training.batch_size * config.data.sequence_length
    cut = ", the last one incomplete" if length.num_train_steps < length.epochs * length.steps_per_epoch else ""
    return "\n".join(
        [
            f"steps      {length.num_train_steps:>10,} = {length.epochs} epoch{'s' * (length.epochs > 1)} of "
            f"{length.steps_per_epoch:,}{cut}, "
            f"batch {config.training.batch_size}{_describe_replicas(job)}, warmup {length.num_warmup_steps:,}",
            f"tokens     {tokens:>10,} in training, without padding; {positions:,} positions per step",
            f"rate       {rates}",
            f"parameters {job.model.count_params():>10,}" + _describe_frozen(job),
            f"memory     {_memory_bytes(job) / 2**30:>10.1f} GiB at the peak, estimated",
            f"disk       {describe_bytes(disk_bytes(job)):>10} at the peak, for {config.checkpoint.keep + 1} "
            f"checkpoints and the model; {describe_bytes(free_bytes(job.run.path))} free",
        ]
    )


def _describe_replicas(job: Job) -> str:
    replicas, workers = job.machine.strategy.num_replicas_in_sync, job.machine.num_workers
    if replicas == 1:
        return ""
    where = f" on {workers} workers" if workers > 1 else ""
    return f" ({job.config.training.batch_size // replicas} per replica, {replicas} replicas{where})"


def _num_trained_parameters(job: Job) -> int:
    return sum(math.prod(variable.shape) for variable in job.model.trainable_variables)


def _describe_frozen(job: Job) -> str:
    return "" if job.config.model.train == "all" else f", {_num_trained_parameters(job):,} of them trained"


def disk_bytes(job: Job) -> int:
    """The largest size of the run directory, while it has one checkpoint more than it keeps.

    The SavedModel is written at the end and needs less.
    """
    weights = 4 * int(job.model.count_params())
    checkpoint = 2 * weights + 8 * _num_trained_parameters(job)  # the best model, and the two moments of Adam
    return (job.config.checkpoint.keep + 1) * checkpoint + weights + _SMALL_FILES_BYTES


def _memory_bytes(job: Job) -> float:
    """Estimate the peak memory: the current process, including the weights, and the memory that training adds.

    Training adds gradients before and after clipping, Adam's moments, activations for the backward pass, and logits.
    """
    config, model_config = job.config, job.model.config
    sequences = config.training.batch_size / config.training.accumulate_steps
    positions = sequences * config.data.sequence_length
    is_float32 = job.machine.precision.name == "float32"
    activation_bytes = 4 if is_float32 else 2
    # Per layer and position about 34 dim-wide values are kept (Korthikanti et al. 2022, equation 1), and the attention
    # scores of each head.
    per_layer = positions * model_config.hidden_size * (34 / 2) * activation_bytes
    per_layer += (
        5 / 2 * activation_bytes * model_config.num_attention_heads * sequences * config.data.sequence_length**2
    )
    logits = _LOGITS_COPIES * 4 * sequences * job.objective.logits_per_sequence(config, job.model)
    added = 16 * _num_trained_parameters(job) + (0 if is_float32 else 2) * int(job.model.count_params())
    return float(peak_memory_bytes() + added + model_config.num_hidden_layers * per_layer + logits)


def peak_memory_bytes() -> int:
    """The peak resident memory of this process; the current one on systems that do not report the peak."""
    memory = psutil.Process().memory_info()
    if peak := getattr(memory, "peak_wset", 0):  # Windows
        return int(peak)
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return int(memory.rss)


def step_products_of(job: Job) -> list[Product]:
    """The matrix products of one update."""
    config = job.config
    length = config.data.sequence_length
    slots = num_slots(length, config.masking.mlm_probability)
    return step_products(job.model.config, config.training.batch_size, length, slots)


@dataclass(frozen=True)
class Trial:
    """Measured seconds, and the peak memory of the process in bytes.

    Attributes:
        step_seconds: time of one compiled training step.
        validation_seconds: time of one compiled validation.
        compile_seconds: time to trace and compile training and validation.
        startup_seconds: time from the start of the process to the first step.
        steps_done: number of updates in the newest checkpoint of the run; 0 for a new run.
    """

    step_seconds: float
    validation_seconds: float
    compile_seconds: float
    startup_seconds: float
    peak_bytes: int
    steps_done: int = 0


class _Clock(keras.callbacks.Callback):
    """Records the time at the end of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.start = time.monotonic()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.monotonic())

    on_test_batch_end = on_train_batch_end

    def step_seconds(self) -> float:
        """Median time of a step, without the first two, which include tracing and compilation."""
        return median(b - a for a, b in zip(self.ends[1:], self.ends[2:], strict=False))

    def compile_seconds(self) -> float:
        """Time of the first two steps minus the time of two compiled steps."""
        return max(self.ends[1] - self.start - 2 * self.step_seconds(), 0.0)


def run_trial(job: Job) -> Trial:
    """Train a few steps and validate a few batches. The model must not be used afterwards.

    Raises:
        Refused: the run has a checkpoint with other settings or data.
    """
    checkpoint = load_checkpoint(job.run.checkpoints_path, fingerprint(job))
    startup = time.time() - psutil.Process().create_time()
    config, data = job.config, job.data
    training = _Clock()
    with job.reporting_read_errors():
        job.model.fit(
            data.train_dataset(config, job.tokenizer, epochs=1),
            epochs=1,
            steps_per_epoch=_TRIAL_STEPS,
            callbacks=[training],
            verbose=0,
        )
    validation = _Clock()
    batches = data.validation_dataset(config, job.tokenizer).repeat()
    job.model.evaluate(batches, steps=_TRIAL_STEPS, verbose=0, callbacks=[validation])
    num_batches = steps_per_epoch(len(data.validation_rows), config.training.batch_size)
    if isinstance(data, MaskedData) and data.second_validation:
        num_batches += steps_per_epoch(len(data.second_validation.rows), config.training.batch_size)
    return Trial(
        step_seconds=training.step_seconds(),
        validation_seconds=validation.step_seconds() * num_batches,
        compile_seconds=training.compile_seconds() + validation.compile_seconds(),
        startup_seconds=startup,
        peak_bytes=peak_memory_bytes(),
        steps_done=checkpoint[0].step if checkpoint else 0,
    )


def describe_trial(job: Job, trial: Trial) -> str:
    """Speed, remaining time and memory, as lines of text."""
    length, num_done = job.length, trial.steps_done
    training = (length.num_train_steps - num_done) * trial.step_seconds
    epochs_left = length.epochs - num_done // length.steps_per_epoch
    validation = (epochs_left + (num_done == 0)) * trial.validation_seconds  # once before training
    parts = [
        (trial.startup_seconds, "startup and data"),
        (trial.compile_seconds, "compilation"),
        (training, f"training{f' ({num_done:,} steps done)' if num_done else ''}"),
        (validation, "validation"),
    ]
    tokens = job.data.count_tokens(job.config, 0, length.num_train_steps) / length.num_train_steps
    return "\n".join(
        [
            f"speed      {tokens / trial.step_seconds:>10,.0f} tokens/s in {_TRIAL_STEPS} trial steps, "
            f"{trial.step_seconds:.3g} s per step",
            f"time       {_duration(sum(seconds for seconds, _ in parts)):>10} = "
            + " + ".join(f"{_duration(seconds)} {name}" for seconds, name in parts)
            + "; without the export at the end",
            f"memory     {trial.peak_bytes / 2**30:>10.1f} GiB host memory at the peak of the trial",
        ]
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
