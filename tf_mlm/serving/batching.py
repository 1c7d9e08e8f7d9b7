"""Joins the requests to a model that arrive together into batches, which one thread answers."""

import asyncio
import collections
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from tf_mlm.serving.requests import Limits, RequestError

_LOG = logging.getLogger(__name__)


class Job(Protocol):
    """The part of a request that a model answers.

    Attributes:
        num_texts: number of its texts.
        num_tokens: estimated number of the tokens that the model reads.
    """

    @property
    def num_texts(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


class Batcher:
    """The queue of one model. All methods must be called in the event loop.

    A batch starts when the model is free, so requests collect while the previous batch is computed. If the previous
    batch had several requests, the next one waits for as many, at most `limits.batch_wait`. Clients that send one
    request after the other then share batches.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        limits: Limits,
        on_batch: Callable[[int], None] = lambda num_requests: None,
    ):
        """
        Args:
            answer: maps jobs to their results; a result that is an exception is raised by `submit`. It is called in a
                thread, always the same one.
            on_batch: called with the number of requests of each batch.
        """
        self._answer = answer
        self._limits = limits
        self._on_batch = on_batch
        self._thread = ThreadPoolExecutor(1)
        self._waiting: collections.deque[tuple[Any, asyncio.Future[Any]]] = collections.deque()
        self._arrived = asyncio.Event()
        self._enough = asyncio.Event()
        self._expected = 1
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def refuse_new(self) -> None:
        """Refuse requests from now on; those that wait are answered."""
        self._is_stopping = True

    async def stop(self) -> None:
        """Answer the waiting requests and end the thread."""
        self.refuse_new()
        self._arrived.set()
        if self._task:
            await self._task
        self._thread.shutdown()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def submit(self, job: Job) -> Any:
        """The result of a job. If the caller is cancelled before its batch begins, the job is dropped.

        Raises:
            RequestError: too many requests wait, the server is stopping, or the job is refused.
        """
        if self._is_stopping:
            raise RequestError("The server is stopping; send the request again later.", 503, retry_after=5)
        if len(self._waiting) >= self._limits.waiting:
            raise RequestError(
                f"{len(self._waiting)} requests are waiting for this model; send the request again later.", 429, 1
            )
        entry = (job, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._arrived.set()
        if len(self._waiting) >= self._expected:
            self._enough.set()
        try:
            return await entry[1]
        except asyncio.CancelledError:
            # By identity: jobs contain arrays, which cannot be compared. Its batch may have begun.
            self._waiting = collections.deque(each for each in self._waiting if each is not entry)
            raise

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self._waiting and self._is_stopping:
                return
            await self._wait_for_others()
            batch = self._take()
            if not self._waiting and not self._is_stopping:
                self._arrived.clear()
            if batch:
                self._expected = min(len(batch), self._limits.batch_texts)
                self._on_batch(len(batch))
                await self._answer_batch(batch)

    async def _wait_for_others(self) -> None:
        self._enough.clear()
        if len(self._waiting) < self._expected and not self._is_stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.batch_wait):
                    await self._enough.wait()

    def _take(self) -> list[tuple[Any, asyncio.Future[Any]]]:
        """The first waiting requests that fit into a batch, at least one of them."""
        batch: list[tuple[Any, asyncio.Future[Any]]] = []
        num_texts = num_tokens = 0
        while self._waiting:
            job = self._waiting[0][0]
            num_texts, num_tokens = num_texts + job.num_texts, num_tokens + job.num_tokens
            if batch and (num_texts > self._limits.batch_texts or num_tokens > self._limits.batch_tokens):
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _answer_batch(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        loop = asyncio.get_running_loop()
        results = await loop.run_in_executor(self._thread, self._results_of, [job for job, _ in batch])
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _results_of(self, jobs: list[Any]) -> Sequence[Any]:
        try:
            return self._answer(jobs)
        except Exception as error:  # an error that the model did not expect must not spoil the other requests
            if len(jobs) > 1:
                return [result for job in jobs for result in self._results_of([job])]
            _LOG.exception("a request failed")
            return [error]
