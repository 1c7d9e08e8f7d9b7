"""The JSON routes of the page."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tf_mlm.config import Config
from tf_mlm.data.sequences import find_cached_sequences
from tf_mlm.errors import Refused
from tf_mlm.run.directory import RunDirectory
from tf_mlm.serving.requests import RequestError, read_string, read_text, read_top_k
from tf_mlm.serving.served_model import FillJob, ScoreJob, ServedModel, split_at
from tf_mlm.serving.service import Service, json_response, read_object

_NUM_SENTENCES = 5
_WORDS = range(5, 19)  # of a sentence
_ROWS_READ = 200


@dataclass(frozen=True)
class PageContent:
    """What the page shows besides the answers of the models.

    Attributes:
        roles: `adapted`, `starting` or `model`, for each model.
        examples: texts to begin with.
        runs: the runs whose curves are shown, by name, with their settings.
    """

    roles: dict[str, str]
    examples: list[str]
    runs: dict[str, tuple[RunDirectory, Config]]


def routes(service: Service, content: PageContent) -> list[Route]:
    limits = service.limits

    def find(body: Mapping[str, Any]) -> ServedModel:
        name = read_string(body, "model")
        if name not in service.models:
            raise RequestError(f"Model {name} does not exist; the models are {', '.join(service.models)}.", 404)
        return service.models[name]

    async def models(request: Request) -> Response:
        found = [
            {
                "name": model.name,
                "title": model.title,
                "role": content.roles[model.name],
                "mask_token": model.mask_token,
                "max_tokens": model.max_tokens,
            }
            for model in service.models.values()
        ]
        return json_response({"models": found, "examples": content.examples, "runs": list(content.runs)})

    splitting = asyncio.Semaphore(limits.batch_texts)  # outside of the queues of the models

    async def split(request: Request) -> Response:
        text = read_text(await read_object(request, limits), "text", limits)
        if service.is_stopping:
            raise RequestError("The server is stopping; send the request again later.", 503, retry_after=5)
        if splitting.locked():
            raise RequestError("Too many texts are being split; send the request again later.", 429, 1)
        first = next(iter(service.models.values()))
        async with splitting:
            found = await asyncio.to_thread(first.split, text)
            counts = {name: await asyncio.to_thread(model.count_tokens, text) for name, model in service.models.items()}
        known = {name: count for name, count in counts.items() if count is not None}
        return json_response(
            {"segments": [{"text": e.text, "word": e.word, "mask": e.mask} for e in found], "num_tokens": known}
        )

    async def fill(request: Request) -> Response:
        body = await read_object(request, limits)
        model = find(body)
        job = FillJob(read_text(body, "text", limits), read_top_k(body, limits))
        masks = await service.answer(request, model, job)
        found = [
            {"fills": [{"token_str": f.token, "probability": f.probability, "text": f.text} for f in fills]}
            for fills in masks
        ]
        return json_response({"masks": found})

    async def score(request: Request) -> Response:
        body = await read_object(request, limits)
        model = find(body)
        text = read_text(body, "text", limits)
        scored = await service.answer(request, model, ScoreJob(text))
        spans = [(word.start, word.end) for word in scored.words]
        segments = split_at(text, spans, [word.log_probability for word in scored.words])
        found = [asdict(segment) for segment in segments]
        return json_response({"segments": found, "log_probability": scored.log_probability})

    async def run(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in content.runs:
            raise RequestError(f"Run {name} does not exist; the runs are {', '.join(content.runs) or 'none'}.", 404)
        after = request.query_params.get("after", "0")
        if not re.fullmatch(r"[0-9]{1,9}", after):
            raise RequestError("after: must be a number of events")
        return json_response({"name": name} | await asyncio.to_thread(read_run, *content.runs[name], int(after)))

    return [
        Route("/page/models", models),
        Route("/page/segments", split, methods=["POST"]),
        Route("/page/fill", fill, methods=["POST"]),
        Route("/page/score", score, methods=["POST"]),
        Route("/page/runs/{name}", run),
    ]


def read_run(run: RunDirectory, config: Config, after: int) -> dict[str, Any]:
    """The events of a run from number `after` on, and its state. Only reads files, also while the run is training.

    Raises:
        RequestError: metrics.jsonl is damaged.
    """
    is_training = run.is_training()  # before the events: a run that ends meanwhile is finished, not stopped
    path = run.metrics_path
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    lines.pop()  # after the last newline: nothing, or an incomplete line
    first, last = (_parse(lines, 0), _parse(lines, len(lines) - 1)) if lines else ({}, {})
    state = "finished" if last.get("event") == "end" else "running" if is_training else "stopped"
    return {
        "events": [_parse(lines, number) for number in range(after, len(lines))],
        "next": len(lines),
        "state": state,
        "num_train_steps": first.get("num_train_steps"),
        "epochs": None if config.training.num_train_steps else config.training.epochs,
    }


def _parse(lines: list[str], number: int) -> dict[str, Any]:
    try:
        event = json.loads(lines[number])
        if not isinstance(event, dict):
            raise ValueError("not an object")
        return event
    except (ValueError, RecursionError):
        raise RequestError(f"Line {number + 1} of the run's metrics.jsonl is damaged.", 500) from None


def find_examples(tokenizer: Any, run: RunDirectory, config: Config) -> list[str]:
    """The sentences of the model card, and short sentences of the validation text if its sequences are in the cache."""
    try:
        fingerprint = run.validation_fingerprint
        found = find_cached_sequences(fingerprint, tokenizer, config.data) if fingerprint else None
    except (Refused, OSError, ValueError):
        found = None
    sentences: list[str] = []
    for row in range(min(len(found.input_ids), _ROWS_READ) if found else 0):
        assert found is not None
        ids = found.input_ids[row, : found.lengths[row]].tolist()
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=True)
        sentences += _complete_sentences(text, tokenizer)
        if len(sentences) >= _NUM_SENTENCES:
            break
    return [*config.training.example_sentences, *list(dict.fromkeys(sentences))[:_NUM_SENTENCES]]


def _complete_sentences(text: str, tokenizer: Any) -> list[str]:
    """One short sentence of a row of the training text, which may begin and end anywhere."""
    special = [re.escape(token) for token in tokenizer.all_special_tokens]
    sentences = re.split(r"(?<=[.!?])\s+", text)[1:-1]
    complete = [each for each in sentences if len(each.split()) in _WORDS and not re.search("|".join(special), each)]
    return complete[:1]
