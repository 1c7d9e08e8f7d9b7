import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tf_mlm.serving.batching import Batcher
from tf_mlm.serving.requests import Limits, RequestError


@dataclass(eq=False)
class Ask:
    """A job whose result is ten times its number. Like a job with arrays, it cannot be compared."""

    number: int
    num_texts: int = 1
    num_tokens: int = 1

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


class Model:
    """Records its batches. It begins to answer when the gate is open."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.begun = threading.Event()

    def answer(self, jobs: Sequence[Ask]) -> list[Any]:
        self.batches.append([job.number for job in jobs])
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.gate.wait(20)
        if any(job.number == 13 for job in jobs):
            raise RuntimeError("spoils the batch")
        return [RequestError("refused") if job.number == 7 else job.number * 10 for job in jobs]


def running(limits: Limits, test: Callable[[Batcher, Model], Coroutine[Any, Any, None]]) -> Model:
    """Run a test with a batcher whose model is busy with job 0."""
    model = Model()

    async def run() -> None:
        batcher = Batcher(model.answer, limits)
        batcher.start()
        first = asyncio.create_task(batcher.submit(Ask(0)))
        await asyncio.to_thread(model.begun.wait)
        await test(batcher, model)
        model.gate.set()
        assert await first == 0
        await batcher.stop()

    asyncio.run(run())
    return model


@contextlib.asynccontextmanager
async def waiting(batcher: Batcher, *jobs: Ask) -> AsyncIterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(batcher.submit(job)) for job in jobs]
    await asyncio.sleep(0)
    yield tasks
    await asyncio.gather(*tasks, return_exceptions=True)


def test_requests_that_arrive_together_are_answered_together_and_in_order() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, *map(Ask, range(1, 7))) as tasks:
            assert batcher.num_waiting == 6
            model.gate.set()
            assert await asyncio.gather(*tasks) == [10, 20, 30, 40, 50, 60]
        assert batcher.num_waiting == 0

    model = running(Limits(), test)
    assert model.batches == [[0], [1, 2, 3, 4, 5, 6]]
    assert len(model.threads) == 1 and threading.get_ident() not in model.threads


@pytest.mark.parametrize(
    ("limits", "jobs", "batches"),
    [
        (Limits(batch_texts=2), [Ask(1), Ask(2), Ask(3)], [[1, 2], [3]]),
        (Limits(batch_texts=4), [Ask(1, num_texts=3), Ask(2, num_texts=2), Ask(3)], [[1], [2, 3]]),
        (Limits(batch_tokens=10), [Ask(1, num_tokens=6), Ask(2, num_tokens=4), Ask(3)], [[1, 2], [3]]),
        (Limits(batch_tokens=10, batch_texts=2), [Ask(1, 9, 99), Ask(2), Ask(3)], [[1], [2, 3]]),
    ],
)
def test_a_batch_has_limits_and_at_least_one_request(limits: Limits, jobs: list[Ask], batches: list[list[int]]) -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, *jobs) as tasks:
            model.gate.set()
            assert await asyncio.gather(*tasks) == [job.number * 10 for job in jobs]

    assert running(limits, test).batches == [[0], *batches]


def test_a_bad_request_fails_alone() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(13), Ask(7), Ask(2)) as tasks:
            model.gate.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert (results[0], results[3]) == (10, 20)
        assert [str(each) for each in results[1:3]] == ["spoils the batch", "refused"]

    assert running(Limits(), test).batches == [[0], [1, 13, 7, 2], [1], [13], [7], [2]]


def test_a_full_queue_refuses_with_a_reason() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(2)) as tasks:
            with pytest.raises(RequestError, match="2 requests are waiting") as error:
                await batcher.submit(Ask(3))
            assert error.value.status == 429 and error.value.retry_after
            model.gate.set()
            assert await asyncio.gather(*tasks) == [10, 20]
        assert await batcher.submit(Ask(4)) == 40

    assert running(Limits(waiting=2), test).batches == [[0], [1, 2], [4]]


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_cancelled_request_is_dropped_and_frees_its_place(cancelled: int) -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(2)) as tasks:
            tasks[cancelled].cancel()
            await asyncio.sleep(0)
            assert batcher.num_waiting == 1
            async with waiting(batcher, Ask(3)) as others:
                model.gate.set()
                assert await asyncio.gather(tasks[1 - cancelled], *others) == [20 - 10 * cancelled, 30]

    assert running(Limits(waiting=2), test).batches == [[0], [2 - cancelled, 3]]


def test_a_request_that_is_cancelled_in_its_batch_does_not_disturb_it() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(2)) as tasks:
            model.begun.clear()
            model.gate.set()
            await asyncio.to_thread(model.begun.wait)
            tasks[0].cancel()
            assert await tasks[1] == 20

    running(Limits(), test)


def test_a_stopping_queue_answers_what_waits_and_refuses_the_rest() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(2)) as tasks:
            batcher.refuse_new()
            with pytest.raises(RequestError, match="stopping") as error:
                await batcher.submit(Ask(3))
            assert error.value.status == 503 and error.value.retry_after
            stopping = asyncio.create_task(batcher.stop())
            await asyncio.sleep(0)
            model.gate.set()
            assert await asyncio.gather(*tasks) == [10, 20]
            await stopping

    assert running(Limits(), test).batches == [[0], [1, 2]]


def test_a_batch_waits_for_as_many_requests_as_the_one_before_it() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(2)) as tasks:
            model.gate.set()
            await asyncio.gather(*tasks)
        async with waiting(batcher, Ask(3)) as third:
            await asyncio.sleep(0.05)
            assert not third[0].done()
            async with waiting(batcher, Ask(4)) as fourth:
                assert await asyncio.gather(*third, *fourth) == [30, 40]

    assert running(Limits(batch_wait=20), test).batches == [[0], [1, 2], [3, 4]]


def test_a_single_request_after_a_full_batch_does_not_wait_forever() -> None:
    async def test(batcher: Batcher, model: Model) -> None:
        async with waiting(batcher, Ask(1), Ask(2)) as tasks:
            model.gate.set()
            await asyncio.gather(*tasks)
        assert await batcher.submit(Ask(3)) == 30
        assert await batcher.submit(Ask(4)) == 40

    assert running(Limits(batch_wait=0.01), test).batches == [[0], [1, 2], [3], [4]]
