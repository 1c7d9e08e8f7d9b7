"""The REST API of TensorFlow Serving: status, metadata and predict.

https://www.tensorflow.org/tfx/serving/api_rest. A request that is answered here is also answered by TensorFlow Serving
with the exported SavedModel. Errors have its status and, for wrong requests, begin as its messages do.
"""

import asyncio
import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow.core.framework.types_pb2 import DataType

from tf_mlm.inference.fill_mask import MASK
from tf_mlm.serving.requests import Limits, RequestError, check_text
from tf_mlm.serving.served_model import ServedModel, Signature, SignatureJob
from tf_mlm.serving.service import Service, json_response, read_object

_DEFAULT_SIGNATURE = "serving_default"
_VERSION = 1
_SHOWN = 60  # characters of a value in a message
_TYPES = {bool: "Boolean", int: "Number", float: "Number", str: "String", list: "Array", dict: "Object"}


def routes(service: Service) -> list[Route]:
    def find(request: Request, message: str, message_of_version: str) -> ServedModel:
        name, version = request.path_params["name"], request.path_params.get("version", _VERSION)
        if ":" in name:  # a method of another verb
            raise malformed_request(request)
        if name not in service.models:
            raise RequestError(message.format(name=name), 404)
        if version != _VERSION:
            raise RequestError(message_of_version.format(name=name, version=version), 404)
        return service.models[name]

    def find_servable(request: Request) -> ServedModel:
        missing = "Servable not found for request: "
        return find(request, f"{missing}Latest({{name}})", f"{missing}Specific({{name}}, {{version}})")

    async def status(request: Request) -> Response:
        find(request, "Could not find any versions of model {name}", "Could not find version {version} of model {name}")
        ok = {"error_code": "OK", "error_message": ""}
        return json_response({"model_version_status": [{"version": str(_VERSION), "state": "AVAILABLE", "status": ok}]})

    async def metadata(request: Request) -> Response:
        model = find_servable(request)
        spec = {"name": model.name, "signature_name": "", "version": str(_VERSION)}
        signatures = {name: _describe(name, signature) for name, signature in model.signatures.items()}
        return json_response({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    async def predict(request: Request) -> Response:
        model = find_servable(request)
        job, is_row = read_predict(await read_object(request, service.limits), model, service.limits)
        outputs = await service.answer(request, model, job)
        # In a thread, because an answer can have a million numbers.
        return await asyncio.to_thread(lambda: json_response(_as_json(outputs, is_row)))

    async def malformed(request: Request) -> Response:
        raise malformed_request(request)

    both = [
        Route(f"{path}{end}", endpoint, methods=[method])
        for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version:int}")
        for end, endpoint, method in (
            (":predict", predict, "POST"),
            ("/metadata", metadata, "GET"),
            ("", status, "GET"),
        )
    ]
    return [*both, Route("/v1/{path:path}", malformed, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])]


def malformed_request(request: Request) -> RequestError:
    return RequestError(f"Malformed request: {request.method} {request.url.path}")


def read_predict(body: Mapping[str, Any], model: ServedModel, limits: Limits) -> tuple[SignatureJob, bool]:
    """The call that a request asks for, and whether its format is the row format.

    Raises:
        RequestError: the request is wrong, or larger than the limits.
    """
    name = body.get("signature_name", _DEFAULT_SIGNATURE)
    if not isinstance(name, str):
        raise RequestError("signature_name: 'signature_name' key must be a string value.")
    name = name or _DEFAULT_SIGNATURE
    if name not in model.signatures:
        raise RequestError(f'Serving signature name: "{_shorten(name)}" not found in signature def')
    signature = model.signatures[name]
    if "instances" in body and "inputs" in body:
        raise RequestError("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in body:
        inputs = _read_rows(body["instances"], signature)
    elif "inputs" in body:
        inputs = _read_columns(body["inputs"], signature)
    else:
        raise RequestError("Missing 'inputs' or 'instances' key")
    _check_limits(inputs, signature, limits)
    return SignatureJob(name, inputs), "instances" in body


def _read_columns(values: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not isinstance(values, dict) or _is_base64(values):
        if len(signature.inputs) > 1:
            raise RequestError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                f"tensorinfo_map ({', '.join(sorted(signature.inputs))})"
            )
        values = {name: values for name in signature.inputs}
    for name in signature.inputs:
        if name not in values:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
    return {name: _to_array(values[name], spec, name) for name, spec in signature.inputs.items()}


def _read_rows(rows: Any, signature: Signature) -> dict[str, np.ndarray]:
    if not isinstance(rows, list):
        raise RequestError("Expecting 'instances' to be a list/array")
    if not rows:
        raise RequestError("No values in 'instances' array")
    are_objects = isinstance(rows[0], dict) and not _is_base64(rows[0])
    if not are_objects and len(signature.inputs) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            f"tensorinfo_map ({', '.join(sorted(signature.inputs))})"
        )
    columns: dict[str, list[Any]] = {name: [] for name in signature.inputs}
    for number, row in enumerate(rows):
        if not are_objects:
            row = {name: row for name in signature.inputs}
        elif not isinstance(row, dict) or _is_base64(row):
            raise RequestError(f"Expecting object but got {_type_of(row)} at item {number} of input list")
        if row.keys() != columns.keys():
            raise RequestError(
                f"Failed to process element: {number} of 'instances' list. JSON object keys must be equal to: "
                f"{','.join(sorted(columns))}"
            )
        for name, column in columns.items():
            column.append(row[name])
    for name, spec in signature.inputs.items():
        if spec.shape.rank == 0:
            raise RequestError(
                f"Failed to process 'instances': {name} must be a scalar, but each row has one; use 'inputs'"
            )
    return {name: _to_array(columns[name], spec, name) for name, spec in signature.inputs.items()}


def _to_array(value: Any, spec: Any, name: str) -> np.ndarray:
    """
    Raises:
        RequestError: the lists in `value` have the wrong depth or lengths, or a value has the wrong type.
    """
    shape: list[int] = []
    first = value
    while isinstance(first, list) and len(shape) <= spec.shape.rank:
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) != spec.shape.rank:
        raise RequestError(f"{name}: Encountered a value of rank {len(shape)}, expected rank {spec.shape.rank}")
    values = [value]
    for level, size in enumerate(shape):
        for each in values:
            if not isinstance(each, list):
                raise RequestError(f"{name}: JSON Value: {_show(each)} found at incorrect level: {level + 1}")
            if len(each) != size:
                raise RequestError(
                    f"{name}: Encountered list at unexpected size: {len(each)} at level: {level} expected size: {size}"
                )
        values = [inner for each in values for inner in each]
    found = np.empty(len(values), object if spec.dtype == tf.string else spec.dtype.as_numpy_dtype)
    for number, each in enumerate(values):
        found[number] = _to_element(each, spec.dtype, name)
    return found.reshape(shape)


def _to_element(value: Any, dtype: Any, name: str) -> bytes | int:
    if dtype == tf.string:
        if isinstance(value, str):
            try:
                return value.encode()
            except UnicodeEncodeError:
                raise RequestError(f"{name}: is not valid Unicode (it contains a lone surrogate)") from None
        if isinstance(value, dict):
            return _decode_base64(value, name)
    elif dtype.is_integer and isinstance(value, int) and not isinstance(value, bool):
        if dtype.min <= value <= dtype.max:
            return value
    raise RequestError(
        f"{name}: JSON Value: {_show(value)} Type: {_type_of(value)} is not of expected type: {dtype.name}"
    )


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _decode_base64(value: Any, name: str) -> bytes:
    if not _is_base64(value):
        raise RequestError(f"{name}: JSON Value: {_show(value)} not formatted correctly for base64 data")
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name}: Unable to base64 decode") from None


def _check_limits(inputs: Mapping[str, np.ndarray], signature: Signature, limits: Limits) -> None:
    if not signature.takes_text:
        shape = max((array.shape for array in inputs.values()), key=math.prod)
        if math.prod(shape) > limits.ids:
            raise RequestError(f"the request has {math.prod(shape):,} ids, and at most {limits.ids:,} are allowed")
        # The dimensions that the model does not know are those of the ids.
        shapes = [output.shape.as_list() for output in signature.outputs.values()]
        known = [
            [s if d is None else d for d, s in zip(each, [*shape, *each[len(shape) :]], strict=True)] for each in shapes
        ]
        if (size := sum(map(math.prod, known))) > limits.numbers:
            raise RequestError(
                f"the answer would have {size:,} numbers, and at most {limits.numbers:,} are allowed; send fewer ids"
            )
        return
    texts = inputs["text"]
    if len(texts) > limits.texts:
        raise RequestError(f"text: has {len(texts)} texts, and at most {limits.texts} are allowed")
    for text in texts.tolist():
        check_text(text.decode(errors="replace"), "text", limits)
        if text.count(MASK.encode()) > limits.masks:
            raise RequestError(
                f"text: a text has {text.count(MASK.encode())} masks, at most {limits.masks} are allowed"
            )
    if not 1 <= inputs["k"] <= limits.top_k:
        raise RequestError(f"k: must be at least 1 and at most {limits.top_k}, not {inputs['k']}")


def _describe(name: str, signature: Signature) -> dict[str, Any]:
    """The signature as TensorFlow's `SignatureDef` in JSON."""

    def tensor(spec: Any, tensor_name: str) -> dict[str, Any]:
        dims = [{"size": str(-1 if size is None else size), "name": ""} for size in spec.shape.as_list()]
        shape = {"dim": dims, "unknown_rank": False}
        return {"dtype": DataType.Name(spec.dtype.as_datatype_enum), "tensor_shape": shape, "name": tensor_name}

    return {
        "inputs": {key: tensor(spec, f"{name}_{key}:0") for key, spec in signature.inputs.items()},
        "outputs": {
            key: tensor(spec, f"StatefulPartitionedCall:{number}")
            for number, (key, spec) in enumerate(sorted(signature.outputs.items()))
        },
        "method_name": "tensorflow/serving/predict",
    }


def _as_json(outputs: Mapping[str, np.ndarray], is_row: bool) -> dict[str, Any]:
    values = {name: _as_lists(name, array) for name, array in sorted(outputs.items())}
    if len(values) == 1:
        (only,) = values.values()
        return {"predictions" if is_row else "outputs": only}
    if not is_row:
        return {"outputs": values}
    return {"predictions": [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]}


def _as_lists(name: str, array: np.ndarray) -> Any:
    if array.dtype != object:
        return array.tolist()

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(each) for each in value]
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode()}
        return value.decode(errors="replace")

    return decode(array.tolist())


def _type_of(value: Any) -> str:
    return _TYPES.get(type(value), "Null")


def _show(value: Any) -> str:
    return _shorten(repr(value)) if isinstance(value, str | int | float) else _type_of(value)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
