"""Hugging Face's fill-mask API, as `huggingface_hub.InferenceClient.fill_mask` calls it."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tf_mlm.serving.requests import Limits, RequestError, check_text, read_text, read_top_k
from tf_mlm.serving.served_model import FillJob
from tf_mlm.serving.service import Service, json_response, read_object


def routes(service: Service) -> list[Route]:
    """`POST /` asks the first model, `POST /models/NAME` the named one."""

    async def fill_mask(request: Request) -> Response:
        name = request.path_params.get("name", next(iter(service.models)))
        if name not in service.models:
            raise RequestError(f"Model {name} does not exist; the models are {', '.join(service.models)}.", 404)
        job = read_fill_job(await read_object(request, service.limits), service.limits)
        masks = await service.answer(request, service.models[name], job)
        found = [
            [
                {"score": fill.probability, "token": fill.token_id, "token_str": fill.token, "sequence": fill.text}
                for fill in fills
            ]
            for fills in masks
        ]
        return json_response(found[0] if len(found) == 1 else found)

    return [Route("/", fill_mask, methods=["POST"]), Route("/models/{name}", fill_mask, methods=["POST"])]


def read_fill_job(body: Mapping[str, Any], limits: Limits) -> FillJob:
    """
    Raises:
        RequestError: the request is wrong.
    """
    text = read_text(body, "inputs", limits)
    parameters = body.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise RequestError("parameters: must be an object")
    targets = parameters.get("targets")
    if isinstance(targets, str):
        targets = [targets]
    if targets is not None:
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise RequestError("targets: must be a list of strings")
        if not 1 <= len(targets) <= limits.top_k:
            raise RequestError(f"targets: has {len(targets)} words; pass from 1 to {limits.top_k}")
        for target in targets:
            check_text(target, "targets", limits)
        targets = tuple(targets)
    return FillJob(text, read_top_k(parameters, limits), targets, as_pipeline=True)
