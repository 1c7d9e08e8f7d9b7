"""The served models with their queues, and the parts that all routes share."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tf_mlm.json_text import dump_json
from tf_mlm.serving.batching import Batcher, Job
from tf_mlm.serving.metrics import Metrics
from tf_mlm.serving.requests import Limits, RequestError, parse_object
from tf_mlm.serving.served_model import ServedModel

_BODY_SECONDS = 30  # for a client to send a body


class Service:
    """The models by name, in the order of the command line, and a queue for each."""

    def __init__(self, models: Sequence[ServedModel], limits: Limits):
        self.models = {model.name: model for model in models}
        self.limits = limits
        self.metrics = Metrics(lambda: {name: batcher.num_waiting for name, batcher in self._batchers.items()})
        self._batchers = {
            model.name: Batcher(model.answer, limits, self.metrics.batches.labels(model.name).observe)
            for model in models
        }
        self.is_stopping = False

    def start(self) -> None:
        for batcher in self._batchers.values():
            batcher.start()

    def refuse_new(self) -> None:
        """Refuse new requests; those that wait are answered. Safe in a signal handler."""
        self.is_stopping = True
        for batcher in self._batchers.values():
            batcher.refuse_new()

    async def stop(self) -> None:
        for batcher in self._batchers.values():
            await batcher.stop()

    async def answer(self, request: Request, model: ServedModel, job: Job) -> Any:
        """The result of a job, which is dropped if the client closes the connection.

        Raises:
            RequestError: see `Batcher.submit`.
        """
        answering = asyncio.ensure_future(self._batchers[model.name].submit(job))
        leaving = asyncio.ensure_future(_wait_until_closed(request))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _closed()
            return answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)


async def _wait_until_closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _closed() -> RequestError:
    return RequestError("The client closed the connection.", 499)  # nobody reads it; nginx's status, for the metrics


async def read_object(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
        RequestError: the body is too large, too slow, or not a JSON object.
    """
    too_large = RequestError(f"The body is larger than {limits.body_bytes:,} bytes.", 413)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large
    except TimeoutError:
        raise RequestError(f"The body did not arrive within {_BODY_SECONDS} seconds.", 408) from None
    except ClientDisconnect:
        raise _closed() from None
    return parse_object(bytes(body))


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dump_json(value, ensure_ascii=False), status, headers, "application/json")


def error_response(error: RequestError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
    return Response(json.dumps({"error": str(error)}), error.status, headers, "application/json")
