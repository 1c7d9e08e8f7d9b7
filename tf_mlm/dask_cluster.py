"""Maps a function over tasks on a Dask cluster, as `worker_processes` does on one machine."""

import contextlib
import logging
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from tf_mlm.errors import Refused

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_CONNECT_SECONDS = 10
_RETRIES = 2  # of a task whose machine was lost


def map_on_dask(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], num_workers: int, scheduler: str = ""
) -> Generator[_Result, None, None]:
    """Yield the results as they are completed. Each task is taken from `tasks` shortly before a worker needs it.

    Args:
        num_workers: processes to start on this machine if `scheduler` is "".
        scheduler: address of the scheduler of a running cluster, such as tcp://host:8786.

    Raises:
        Refused: the scheduler does not answer.
        OSError: a task was lost several times.
    """
    from distributed import KilledWorker, as_completed

    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_connect(scheduler) if scheduler else _start(num_workers))
        completed: Any = as_completed(with_results=True)
        num_running = 0
        try:
            for task in tasks:
                completed.add(client.submit(function, task, pure=False, retries=_RETRIES))
                num_running += 1
                if num_running > 2 * max(sum(client.nthreads().values()), 1):
                    num_running -= 1
                    yield next(completed)[1]
            yield from (result for _, result in completed)
        except KilledWorker as error:
            raise OSError(f"a task of the Dask cluster was lost {_RETRIES + 1} times: {error}") from None


def _start(num_workers: int) -> Any:
    from distributed import Client

    return Client(
        n_workers=num_workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )


def _connect(scheduler: str) -> Any:
    from distributed import Client

    try:
        return Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refused(
            f"--scheduler {scheduler}: cannot be reached: {reason}; pass the address of a running Dask scheduler"
        ) from None
