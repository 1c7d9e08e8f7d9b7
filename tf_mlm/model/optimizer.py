"""The optimizer: AdamW, its schedule of warmup and polynomial decay, and the weights excluded from weight decay."""

import re
from typing import Any

import tf_keras as keras
from transformers.optimization_tf import AdamWeightDecay as StockAdamWeightDecay

from tf_mlm.config import OptimizerConfig
from tf_mlm.errors import Refused

NOT_DECAYED = (r"(?i)layer_?norm", r"bias")
"""Regular expressions for the names of weights without weight decay: LayerNorm and biases.

Source: Devlin et al. 2019, appendix A.2.
"""


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warmup to the first rate of `decay`, then `decay`.

    Unlike transformers' schedule of this name, the first step has a rate above 0, and the config can be serialized.

    Args:
        num_warmup_steps: updates until the peak rate.
        decay: the schedule after the warmup, by the number of updates since its end.
    """

    def __init__(self, num_warmup_steps: int, decay: keras.optimizers.schedules.LearningRateSchedule):
        self.num_warmup_steps = num_warmup_steps
        self.decay = decay

    def __call__(self, step: Any) -> Any:
        """The rate of update `step`, counted from 0, as a float32 scalar."""
        import tensorflow as tf

        step = tf.cast(step, tf.float32)
        climb = tf.minimum((step + 1.0) / max(self.num_warmup_steps, 1), 1.0)
        return climb * self.decay(tf.maximum(step - self.num_warmup_steps, 0.0))

    def get_config(self) -> dict[str, Any]:
        return {
            "num_warmup_steps": self.num_warmup_steps,
            "decay": keras.optimizers.schedules.serialize(self.decay),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        return cls(config["num_warmup_steps"], keras.optimizers.schedules.deserialize(config["decay"]))


class AdamWeightDecay(StockAdamWeightDecay):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    transformers' class matches `exclude_from_weight_decay` as substrings instead of regular expressions, and drops it
    in `get_config`, so that a restored optimizer decays LayerNorm and biases.
    """

    def _do_use_weight_decay(self, param_name: str) -> bool:
        excluded = self._exclude_from_weight_decay or ()
        return self.weight_decay_rate > 0 and not any(re.search(pattern, param_name) for pattern in excluded)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()  # type: ignore[no-untyped-call]
        return config | {"exclude_from_weight_decay": self._exclude_from_weight_decay}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AdamWeightDecay":
        config = dict(config)
        if isinstance(config["learning_rate"], dict):
            config["learning_rate"] = keras.optimizers.schedules.deserialize(
                config["learning_rate"], custom_objects={"WarmUp": WarmUp}
            )
        return cls(**config)


def num_warmup_steps(config: OptimizerConfig, num_train_steps: int) -> int:
    """Number of warmup updates: `config.num_warmup_steps`, or if that is negative the share `config.warmup_ratio`.

    Raises:
        Refused: the warmup is as long as the training or longer.
    """
    if config.num_warmup_steps < 0:
        return int(config.warmup_ratio * num_train_steps)
    if config.num_warmup_steps >= num_train_steps:
        raise Refused(
            f"optimizer.num_warmup_steps = {config.num_warmup_steps}: must be less than the {num_train_steps} steps of "
            "the training; lower it, or set optimizer.warmup_ratio"
        )
    return config.num_warmup_steps


def build_schedule(config: OptimizerConfig, num_train_steps: int) -> WarmUp:
    """The learning rate by update, counted from 0.

    Raises:
        Refused: the warmup is as long as the training or longer.
    """
    warmup = num_warmup_steps(config, num_train_steps)
    decay = keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=config.learning_rate,
        decay_steps=num_train_steps - warmup,
        end_learning_rate=config.end_learning_rate,  # Keras' default, 1e-4, is larger than most peak rates
        power=config.power,
    )
    return WarmUp(warmup, decay)


def build_optimizer(config: OptimizerConfig, num_train_steps: int, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer of a training; with float16 it scales the loss, so that small gradients do not underflow.

    Raises:
        Refused: the warmup is as long as the training or longer.
    """
    optimizer = AdamWeightDecay(
        learning_rate=build_schedule(config, num_train_steps),
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
        weight_decay_rate=config.weight_decay_rate,
        exclude_from_weight_decay=list(NOT_DECAYED),
    )
    return keras.mixed_precision.LossScaleOptimizer(optimizer) if precision == "float16" else optimizer
