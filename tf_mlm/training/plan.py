"""What a run will do, in steps, tokens, rates and memory, known before anything is trained."""

from dataclasses import dataclass
from typing import Any

from tf_mlm.config import Config
from tf_mlm.data.masking import num_slots
from tf_mlm.data.pipeline import steps_per_epoch
from tf_mlm.model.optimizer import build_schedule, num_warmup_steps

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


def describe_plan(config: Config, length: RunLength, model: Any, precision: str) -> str:
    """Steps, tokens, schedule, and a memory estimate, in lines for a reader."""
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
        ]
    )


def _memory_bytes(config: Config, model: Any, precision: str) -> float:
    """Weights, gradients and Adam's two moments in float32; activations kept for the backward pass; logits."""
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
    runtime = 0.7 * 2**30  # TensorFlow and the libraries themselves, as measured
    return 16 * model.count_params() + n_layers * per_layer + logits + runtime
