"""Durations, turned into updates once."""

from dataclasses import dataclass

from tf_mlm.config import Config
from tf_mlm.data.pipeline import steps_per_epoch
from tf_mlm.model.optimizer import num_warmup_steps


@dataclass(frozen=True)
class RunLength:
    """The length of a training.

    Attributes:
        epochs: epochs begun; the last one is cut short where `training.num_train_steps` says so.
        steps_per_epoch: updates in a whole epoch.
        num_train_steps: updates in all.
        num_warmup_steps: updates over which the learning rate climbs.
    """

    epochs: int
    steps_per_epoch: int
    num_train_steps: int
    num_warmup_steps: int

    @classmethod
    def of(cls, config: Config, num_sequences: int) -> "RunLength":
        """The length of a training on `num_sequences` sequences.

        Raises:
            Refused: the warmup is as long as the training or longer.
        """
        per_epoch = steps_per_epoch(num_sequences, config.training.batch_size)
        num_train_steps = config.training.num_train_steps or config.training.epochs * per_epoch
        return cls(
            epochs=-(-num_train_steps // per_epoch),
            steps_per_epoch=per_epoch,
            num_train_steps=num_train_steps,
            num_warmup_steps=num_warmup_steps(config.optimizer, num_train_steps),
        )
