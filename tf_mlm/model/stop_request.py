"""A request to stop that one worker makes and that all workers receive in the same step."""

from typing import Any

import tensorflow as tf

STOP_REQUEST = "stop_request"
"""Key of the number of requests in the logs of a step."""


class StopRequest:
    """A flag on each worker. Create it inside the scope of the strategy."""

    def __init__(self) -> None:
        self._strategy = tf.distribute.get_strategy()
        self._flag = tf.Variable(
            0.0,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,  # a separate value on each replica
            aggregation=tf.VariableAggregation.SUM,
        )

    def make(self) -> None:
        """Ask all workers to stop."""
        for flag in self._strategy.experimental_local_results(self._flag):
            flag.assign(1.0)

    def total(self) -> Any:
        """The number of replicas whose worker asks to stop, float32; call it in a step."""
        replica = tf.distribute.get_replica_context()
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(self._flag))


def build_stop_request() -> StopRequest | None:
    """The flag under the current strategy; None if it has one worker."""
    is_multi_worker = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
    return StopRequest() if is_multi_worker else None
