"""Converts durations to numbers of updates."""

from dataclasses import dataclass

from tf_mlm.config import Config
from tf_mlm.data.pipeline import steps_per_epoch
from tf_mlm.model.optimizer import num_warmup_steps


@dataclass(frozen=True)
class RunLength:
    """The length of a training.

    Attributes:
        epochs: number of epochs; the last one is incomplete if `training.num_train_steps` ends it early.
        steps_per_epoch: number of updates in a complete epoch.
        num_train_steps: total number of updates.
        num_warmup_steps: number of updates over which the learning rate increases.
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
