"""Sends the state of the chief to the other workers, and reports workers that failed."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from tf_mlm.errors import Refused, WorkerFailed
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.directory import RunDirectory
from tf_mlm.runtime import Machine, connected_workers

_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
"""Errors of an operation that waits for a worker that has ended."""


def share_progress(machine: Machine, progress: Progress) -> Progress:
    """The progress of the chief.

    Raises:
        Refused: this worker has other data, weights or precision than the chief.
    """
    if machine.num_workers == 1:
        return progress
    text = json.dumps(asdict(progress)).encode() if machine.is_chief else b""
    state = json.loads(_broadcast_bytes(machine, text))
    if state["fingerprint"] != progress.fingerprint:
        raise Refused(
            f"worker {machine.worker}: its text, model or precision differs from that of worker 0; use the same "
            "dataset and model on all workers, and set training.precision"
        )
    return Progress.from_json(state)


def share_events(machine: Machine, run: RunDirectory) -> None:
    """Replace the events of the other workers by those of the chief, whose times, and so whose lengths, differ."""
    if machine.num_workers > 1:
        text = _broadcast_bytes(machine, run.metrics_path.read_bytes() if machine.is_chief else b"")
        if not machine.is_chief:
            run.metrics_path.write_bytes(text)


def share_variables(machine: Machine, variables: dict[str, Any]) -> None:
    """Assign the values of the chief to the variables of all workers."""
    if machine.num_workers > 1:
        for variable in variables.values():
            variable.assign(_broadcast(machine, variable.numpy()))


def _broadcast_bytes(machine: Machine, data: bytes) -> bytes:
    (length,) = _broadcast(machine, np.array([len(data)]))
    padded = np.zeros(length, np.int32)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return _broadcast(machine, padded).astype(np.uint8).tobytes()


def _broadcast(machine: Machine, array: np.ndarray) -> np.ndarray:
    """The array of the chief: a sum to which all other workers add zeros of the same shape."""

    @tf.function(autograph=False)
    def broadcast(value: Any) -> Any:
        def add() -> Any:
            replica = tf.distribute.get_replica_context()
            is_first = tf.equal(replica.replica_id_in_sync_group, 0)
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(is_first, value, tf.zeros_like(value)))

        return machine.strategy.experimental_local_results(machine.strategy.run(add))[0]

    return broadcast(tf.constant(array)).numpy()


def wait_for_chief(machine: Machine) -> None:
    """Wait until the chief calls this too, after it has exported the model."""
    if machine.num_workers > 1:
        with contextlib.suppress(*_LOST) if machine.is_chief else contextlib.nullcontext():
            _broadcast(machine, np.zeros(1, np.int32))


@contextlib.contextmanager
def reporting_failed_workers() -> Iterator[None]:
    """Raise `WorkerFailed` instead of the error of an operation that lost another worker."""
    try:
        yield
    except _LOST as error:
        workers = connected_workers()
        if workers is None:
            raise
        reason = str(error).rpartition("aborted by: ")[2].splitlines()[0].rstrip(" :")
        raise WorkerFailed(
            f"worker {workers.index}: another worker failed or cannot be reached ({reason}); start all workers again "
            "with --resume to continue from the last checkpoint"
        ) from error
