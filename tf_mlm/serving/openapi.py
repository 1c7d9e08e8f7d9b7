"""The description of all routes, as OpenAPI."""

from typing import Any

from tf_mlm import __version__

_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}
_NUMBER = {"type": "number"}
_BOOLEAN = {"type": "boolean"}
_OBJECT = {"type": "object"}


def describe_api() -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    fill = _object(score=_NUMBER, token=_INTEGER, token_str=_STRING, sequence=_STRING)
    fill_mask = _post(
        "Fill masks, as Hugging Face's fill-mask API does",
        _object(
            inputs=_STRING, parameters=_object(top_k=_INTEGER, targets=_list(_STRING), required=[]), required=["inputs"]
        ),
        {"oneOf": [_list(fill), _list(_list(fill))]},
    )
    predict = _post(
        "Call a signature of the SavedModel, as TensorFlow Serving does",
        _object(signature_name=_STRING, inputs={}, instances={"type": "array"}, required=[]),
        _object(outputs={}, predictions={"type": "array"}, required=[]),
    )
    status = _get("State of a model, as TensorFlow Serving reports it", _object(model_version_status=_list(_OBJECT)))
    metadata = _get(
        "Signatures of a model, as TensorFlow Serving reports them", _object(model_spec=_OBJECT, metadata=_OBJECT)
    )
    segment: dict[str, Any] = {"text": _STRING, "word": _BOOLEAN, "mask": _BOOLEAN}
    scored = _object(**segment, log_probability={"type": ["number", "null"]})
    page_fill = _object(token_str=_STRING, probability=_NUMBER, text=_STRING)
    version = _parameter("version", "path", _INTEGER)
    paths: dict[str, Any] = {
        "/": {"get": _get("The page", media_type="text/html"), "post": fill_mask},
        "/models/{name}": {"post": fill_mask},
        "/v1/models/{name}": {"get": status},
        "/v1/models/{name}/versions/{version}": {"get": status, "parameters": [version]},
        "/v1/models/{name}/metadata": {"get": metadata},
        "/v1/models/{name}/versions/{version}/metadata": {"get": metadata, "parameters": [version]},
        "/v1/models/{name}:predict": {"post": predict},
        "/v1/models/{name}/versions/{version}:predict": {"post": predict, "parameters": [version]},
        "/page/models": {
            "get": _get(
                "Models, examples and runs of the page",
                _object(models=_list(_OBJECT), examples=_list(_STRING), runs=_list(_STRING)),
            )
        },
        "/page/segments": {
            "post": _post(
                "Words and masks of a text, and its number of tokens for each model",
                _object(text=_STRING),
                _object(segments=_list(_object(**segment)), num_tokens=_OBJECT),
            )
        },
        "/page/fill": {
            "post": _post(
                "The most likely tokens of each mask",
                _object(model=_STRING, text=_STRING, top_k=_INTEGER, required=["model", "text"]),
                _object(masks=_list(_object(fills=_list(page_fill)))),
            )
        },
        "/page/score": {
            "post": _post(
                "The pseudo-log-likelihood of each word, in nats",
                _object(model=_STRING, text=_STRING),
                _object(segments=_list(scored), log_probability=_NUMBER),
            )
        },
        "/page/runs/{name}": {
            "get": _get(
                "The events of a run and its state",
                _object(
                    name=_STRING,
                    events=_list(_OBJECT),
                    next=_INTEGER,
                    state={"enum": ["running", "finished", "stopped"]},
                    num_train_steps={"type": ["integer", "null"]},
                    epochs={"type": ["integer", "null"]},
                ),
            ),
            "parameters": [_parameter("after", "query", _INTEGER)],
        },
        "/healthz": {
            "get": _get(
                "Whether the server is ready", _object(status=_STRING, models=_list(_STRING), required=["status"])
            )
        },
        "/metrics": {"get": _get("Metrics as Prometheus text", media_type="text/plain")},
        "/openapi.json": {"get": _get("This document", _OBJECT)},
    }
    for path, item in paths.items():
        if "{name}" in path:
            item["parameters"] = [_parameter("name", "path", _STRING), *item.get("parameters", [])]
    return {"openapi": "3.1.0", "info": {"title": "tf-mlm serve", "version": __version__}, "paths": paths}


def _object(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """An object; `required` are all properties by default."""
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _get(summary: str, schema: dict[str, Any] | None = None, media_type: str = "application/json") -> dict[str, Any]:
    content = {media_type: {"schema": schema or _STRING}}
    error = {"description": "Error", "content": {"application/json": {"schema": _object(error=_STRING)}}}
    return {"summary": summary, "responses": {"200": {"description": "Success", "content": content}, "default": error}}


def _post(summary: str, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    return _get(summary, response) | {"requestBody": body}
