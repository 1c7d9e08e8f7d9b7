"""The workers of multi-worker training: their addresses, and their connections until TensorFlow connects them.

Worker 0 is the chief: it owns the run directory and sends the settings of the run to the others.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tf_mlm import __version__, runtime
from tf_mlm.config import Config, DistributionConfig, TrainingConfig
from tf_mlm.errors import Refused

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5  # from the connection of a worker until its first message
_LARGEST_HELLO = 2**20  # bytes
_HEARTBEAT_SECONDS = 10
_SHUTDOWN_SECONDS = 10


@dataclass(frozen=True)
class Cluster:
    """All workers of a run, as seen by one of them.

    Attributes:
        addresses: host:port of each worker; the first one is the chief.
        index: index of this worker.
        source: where the addresses come from, for messages.
    """

    addresses: tuple[str, ...]
    index: int
    source: str = "TF_CONFIG"

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def __len__(self) -> int:
        return len(self.addresses)


def find_cluster(config: Config) -> Cluster | None:
    """The cluster in `TF_CONFIG` or of the SLURM job step, or None if this process trains alone.

    Raises:
        Refused: `TF_CONFIG` is malformed, `distribution.strategy` requires several workers and there is one, or several
            workers cannot train this objective or have trained in this process before.
    """
    strategy = config.distribution.strategy
    if strategy not in ("auto", "multi_worker"):
        return None
    cluster = None
    if text := os.environ.get("TF_CONFIG"):
        cluster = _parse_tf_config(text)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        cluster = _ask_slurm(config.training)
    if strategy == "multi_worker" and cluster is None:
        raise Refused(
            "distribution.strategy = 'multi_worker': neither TF_CONFIG nor SLURM describes several workers; set "
            "TF_CONFIG in each process, or set the strategy to 'auto'"
        )
    if cluster and config.objective.name != "masked":
        raise Refused(
            f"objective.name = {config.objective.name!r}: several workers can only train masked language models; start "
            f"one process without {cluster.source}, or set distribution.strategy = 'none' in one process"
        )
    if cluster and runtime.connected_workers():
        raise Refused(
            f"{cluster.source}: this process has already trained with other workers; start a new process for each run"
        )
    return cluster


def _parse_tf_config(text: str) -> Cluster | None:
    try:
        value = json.loads(text)
        jobs = value["cluster"]
        kind, index = value["task"]["type"], value["task"]["index"]
        if not all(isinstance(each, str) for addresses in jobs.values() for each in addresses):
            raise TypeError
    except json.JSONDecodeError as error:
        raise Refused(f"TF_CONFIG: not JSON: {error}; fix it, or unset it to train alone") from None
    except (KeyError, TypeError, AttributeError):
        raise Refused(
            'TF_CONFIG: must have the form {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", '
            f'"index": 0}}}}; it is {text}'
        ) from None
    if unknown := sorted(set(jobs) - {"chief", "worker"}):
        raise Refused(f"TF_CONFIG: cluster has the job {unknown[0]!r}; only 'chief' and 'worker' are supported")
    if not isinstance(index, int) or kind not in jobs or not 0 <= index < len(jobs[kind]):
        sizes = ", ".join(f"{len(addresses)} of type {job!r}" for job, addresses in jobs.items())
        raise Refused(f"TF_CONFIG: task is {kind!r} {index!r}, which the cluster does not have; it has {sizes}")
    chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
    addresses = (*chiefs, *workers)
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise Refused(f"TF_CONFIG: the address {address!r} is not of the form host:port, with a port below 65536")
    if len(set(addresses)) < len(addresses):
        raise Refused("TF_CONFIG: two workers have the same address; give each one a separate port")
    index += len(chiefs) if kind == "worker" else 0
    return Cluster(addresses, index) if len(addresses) > 1 else None


def _ask_slurm(training: TrainingConfig) -> Cluster:
    with runtime.importing_tensorflow(training):
        from tensorflow import distribute
    num_tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    try:
        # SLURM has already assigned the GPUs; without these numbers, the resolver would call nvidia-smi.
        resolver = distribute.cluster_resolver.SlurmClusterResolver(
            {"worker": num_tasks}, gpus_per_node=num_tasks, gpus_per_task=1, auto_set_gpu=False
        )
        addresses = resolver.cluster_spec().as_dict()["worker"]
        return Cluster(tuple(addresses), resolver.get_task_info()[1], "SLURM")
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise Refused(f"SLURM: the job step does not name its hosts: {error}; start the workers with srun") from None


class Meeting:
    """The connections between the chief and the other workers, until TensorFlow connects them.

    Args:
        connections: sockets by the index of the other side: all other workers for the chief, only the chief for others.
        seconds: time to wait for a message.
    """

    def __init__(self, cluster: Cluster, connections: dict[int, socket.socket], seconds: float):
        self._cluster = cluster
        self._connections = connections
        self._seconds = seconds

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, *exception: object) -> None:
        for connection in self._connections.values():
            connection.close()

    def finish(self) -> None:
        """Wait until every worker has imported TensorFlow.

        Raises:
            Refused: a worker ended before it had imported TensorFlow.
        """
        deadline = time.monotonic() + self._seconds
        message = {"ready": True}
        for index, connection in self._connections.items():
            try:
                if not self._cluster.is_chief:
                    _send(connection, message)
                _receive(connection, deadline)
            except (OSError, ValueError) as error:
                raise Refused(
                    f"{self._cluster.source}: worker {index} ended before training started ({error}); read its "
                    "output, and start all workers again"
                ) from None
        if self._cluster.is_chief:
            _send_all(self._connections, message)


def welcome(cluster: Cluster, config: Config, given: Mapping[str, Any], run: Mapping[str, Any]) -> Meeting:
    """Wait until all other workers have connected, and send them `run`. Only the chief calls it.

    Args:
        given: the settings that the chief was started with, as in `join`.
        run: JSON values that each worker receives.

    Raises:
        Refused: the port is in use, a worker did not connect in time, or a worker has another version or
            other settings.
    """
    seconds = config.distribution.timeout_seconds
    deadline = time.monotonic() + seconds
    connections: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, _listen(cluster) as server:
        print(
            f"workers    waiting for {len(cluster) - 1} other worker{'s' * (len(cluster) > 2)}, at most {seconds:g} s",
            flush=True,
        )
        while missing := sorted(set(range(1, len(cluster))) - connections.keys()):
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                raise Refused(_describe_missing(cluster, missing, seconds)) from None
            try:
                hello = _receive(connection, min(deadline, time.monotonic() + _HELLO_SECONDS), _LARGEST_HELLO)
                index = int(hello["worker"])
            except (OSError, ValueError, KeyError, TypeError):
                connection.close()  # not a worker
                continue
            connections[index] = connection
            if reason := _find_difference(hello, given, cluster, index):
                _send_all(connections, {"refused": reason})
                raise Refused(reason)
        _send_all(connections, run)
        stack.pop_all()
    return Meeting(cluster, connections, seconds)


def join(
    cluster: Cluster, distribution: DistributionConfig, given: Mapping[str, Any]
) -> tuple[Meeting, dict[str, Any]]:
    """Connect to the chief and wait until all workers have connected. All workers except the chief call it.

    Args:
        given: the settings that this worker was started with; the chief must have been started with the same.

    Returns:
        The meeting, and the values that the chief sends.

    Raises:
        Refused: the port of this worker is in use, the chief cannot be reached in time, or it refused this worker.
    """
    seconds = distribution.timeout_seconds
    deadline = time.monotonic() + seconds
    host, _, port = cluster.addresses[0].rpartition(":")
    _listen(cluster).close()  # refuses a port that is in use, before the chief waits for this worker
    print(f"workers    waiting for worker 0 at {cluster.addresses[0]}, at most {seconds:g} s", flush=True)
    while True:
        chief = None
        try:
            chief = socket.create_connection((host, int(port)), timeout=max(deadline - time.monotonic(), 1e-3))
            hello = {"worker": cluster.index, "version": __version__, "given": dict(given)}
            _send(chief, hello | {"addresses": list(cluster.addresses)})
            answer = _receive(chief, deadline)
            break
        except (OSError, ValueError) as error:  # the chief has not started, or its host name is not known yet
            if chief:
                chief.close()
            if time.monotonic() >= deadline:
                raise Refused(
                    f"{cluster.source}: worker 0 at {cluster.addresses[0]} did not answer within {seconds:g} s "
                    f"({error}); start all workers, or raise distribution.timeout_seconds"
                ) from None
            time.sleep(_RETRY_SECONDS)
    if "refused" in answer:
        chief.close()
        raise Refused(answer["refused"])
    return Meeting(cluster, {0: chief}, seconds), answer


def create_strategy(cluster: Cluster, distribution: DistributionConfig, meeting: Meeting) -> None:
    """Connect TensorFlow's workers. Call it before the first operation of the process.

    Raises:
        Refused: a worker has ended, or TensorFlow cannot connect.
    """
    import tensorflow as tf
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context  # the limits of the coordination service have no public interface

    with meeting:
        meeting.finish()
    context.context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=round(distribution.timeout_seconds * 1000),
        heartbeat_timeout_in_ms=_HEARTBEAT_SECONDS * 1000,
        shutdown_barrier_timeout_in_ms=_SHUTDOWN_SECONDS * 1000,
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(cluster))],
    )
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (tf.errors.OpError, RuntimeError) as error:  # RuntimeError: an operation ran before
        reason = str(error).splitlines()[0]
        raise Refused(f"{cluster.source}: the workers cannot be connected: {reason}; start all of them again") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # TensorFlow's handler ignores SIGTERM
    runtime.use_workers(strategy, len(cluster), cluster.index)


def _listen(cluster: Cluster) -> socket.socket:
    address = cluster.addresses[cluster.index]
    port = int(address.rpartition(":")[2])
    try:
        return socket.create_server(("", port), backlog=len(cluster))
    except OSError as error:
        raise Refused(
            f"{cluster.source}: the port of worker {cluster.index}, {address}, cannot be used: {error.strerror}; stop "
            "the process that uses it, or choose another port"
        ) from None


def _describe_missing(cluster: Cluster, missing: list[int], seconds: float) -> str:
    shown = ", ".join(f"{index} ({cluster.addresses[index]})" for index in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"{cluster.source}: worker {shown}{more} did not connect within {seconds:g} s; start all workers, or raise "
        "distribution.timeout_seconds"
    )


def _find_difference(hello: Mapping[str, Any], given: Mapping[str, Any], cluster: Cluster, index: int) -> str:
    """Why worker `index` cannot train with the chief; "" if it can."""
    if hello.get("version") != __version__:
        return (
            f"worker {index} has tf_mlm {hello.get('version')}, and worker 0 has {__version__}; install the same "
            "version for all workers"
        )
    if hello.get("addresses") != list(cluster.addresses):
        return f"{cluster.source}: worker {index} has other addresses than worker 0; pass the same list to all workers"
    theirs = hello.get("given", {})
    for name in sorted({*theirs, *given}):
        if theirs.get(name) != given.get(name):
            return (
                f"worker {index} was started with {name} = {theirs.get(name)!r}, and worker 0 with "
                f"{given.get(name)!r}; start all workers with the same settings"
            )
    return ""


def _send_all(connections: Mapping[int, socket.socket], value: Mapping[str, Any]) -> None:
    for connection in connections.values():
        with contextlib.suppress(OSError):  # the worker has ended; a later step reports it
            _send(connection, value)


def _send(connection: socket.socket, value: Mapping[str, Any]) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


def _receive(connection: socket.socket, deadline: float, largest: int = 2**30) -> dict[str, Any]:
    """Receive one JSON object, on one line.

    Raises:
        OSError: no complete line arrived before the deadline.
        ValueError: the line is not a JSON object, or has more than `largest` bytes.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        if not (received := connection.recv(2**16)):
            raise ConnectionError("the connection was closed")
        line += received
        if len(line) > largest:
            raise ValueError(f"more than {largest:,} bytes")
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
