"""AdamWeightDecay, its schedule of warmup and polynomial decay, and which weights are not decayed."""

import re
from typing import Any

import tf_keras as keras
import transformers

from tf_mlm.config import OptimizerConfig
from tf_mlm.errors import Refused

NOT_DECAYED = (r"(?i)layer_?norm", r"bias")
"""Regular expressions of the weights left undecayed, LayerNorm and biases (Devlin et al. 2019, appendix A.2)."""


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A linear climb to the rate at which `decay` begins, then `decay`.

    Unlike transformers' schedule of this name, the first step has a rate above 0, and the config can be serialised.
    """

    def __init__(self, num_warmup_steps: int, decay: keras.optimizers.schedules.LearningRateSchedule):
        self.num_warmup_steps = num_warmup_steps
        self.decay = decay

    def __call__(self, step: Any) -> Any:
        """Rate of update `step`, counted from 0: float32 scalar."""
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


class AdamWeightDecay(transformers.AdamWeightDecay):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), whose exclusions are what they are documented as.

    The parent matches its patterns as substrings and loses them in `get_config`, so that a restored optimizer decays
    LayerNorm and biases.
    """

    def _do_use_weight_decay(self, param_name: str) -> bool:
        excluded = self._exclude_from_weight_decay or ()
        return self.weight_decay_rate > 0 and not any(re.search(pattern, param_name) for pattern in excluded)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"exclude_from_weight_decay": self._exclude_from_weight_decay}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AdamWeightDecay":
        config = dict(config)
        if isinstance(config["learning_rate"], dict):
            config["learning_rate"] = keras.optimizers.schedules.deserialize(
                config["learning_rate"], custom_objects={"WarmUp": WarmUp}
            )
        return cls(**config)


def num_warmup_steps(config: OptimizerConfig, num_train_steps: int) -> int:
    """Updates over which the rate climbs: `config.num_warmup_steps`, or the share `config.warmup_ratio` of all.

    Raises:
        Refused: the warmup would take the whole training or more, so that the peak rate is never decayed.
    """
    if config.num_warmup_steps < 0:
        return int(config.warmup_ratio * num_train_steps)
    if config.num_warmup_steps >= num_train_steps:
        raise Refused(
            f"optimizer.num_warmup_steps = {config.num_warmup_steps}: must be below the {num_train_steps} steps of the "
            "training; lower it, or use optimizer.warmup_ratio"
        )
    return config.num_warmup_steps


def build_schedule(config: OptimizerConfig, num_train_steps: int) -> WarmUp:
    warmup = num_warmup_steps(config, num_train_steps)
    decay = keras.optimizers.schedules.PolynomialDecay(
        initial_learning_rate=config.learning_rate,
        decay_steps=num_train_steps - warmup,
        end_learning_rate=config.end_learning_rate,  # Keras' default, 1e-4, is above most peak rates
        power=config.power,
    )
    return WarmUp(warmup, decay)


def build_optimizer(config: OptimizerConfig, num_train_steps: int, precision: str) -> keras.optimizers.Optimizer:
    """The optimizer; with float16 it scales the loss, so that small gradients do not vanish."""
    optimizer = AdamWeightDecay(
        learning_rate=build_schedule(config, num_train_steps),
        beta_1=config.beta_1,
        beta_2=config.beta_2,
        epsilon=config.epsilon,
        weight_decay_rate=config.weight_decay_rate,
        exclude_from_weight_decay=list(NOT_DECAYED),
    )
    return keras.mixed_precision.LossScaleOptimizer(optimizer) if precision == "float16" else optimizer
