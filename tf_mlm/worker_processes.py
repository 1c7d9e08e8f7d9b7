"""Maps a function over tasks in several processes, which end when this one ends.

It imports nothing heavy, so that a new process ignores Ctrl-C soon after its start.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def map_unordered(
    function: Callable[[_Task], _Result], tasks: Iterable[_Task], num_workers: int
) -> Generator[_Result, None, None]:
    """Yield the results as they are completed. Each task is taken from `tasks` shortly before a process needs it.

    The processes are terminated if the iterator is closed or an exception is raised.

    Raises:
        OSError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of libraries, but not their threads
    pool = ProcessPoolExecutor(num_workers, context, initializer=_begin)
    pending: set[Future[_Result]] = set()
    try:
        for task in tasks:
            pending.add(pool.submit(function, task))
            if len(pending) > 2 * num_workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise OSError("a worker process was killed, possibly because the memory is full; lower --num-workers") from None
    finally:
        if pending:
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Prepare a new process: the parent handles interrupts, and the process ends when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for each process
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        with contextlib.suppress(Exception):
            parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
