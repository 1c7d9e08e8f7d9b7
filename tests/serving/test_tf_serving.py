"""TensorFlow Serving's REST API, against its documentation and messages."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.conftest import Server, error_of

TEXTS = ["This is a [MASK] film.", "no mask", "The [MASK] was [MASK]."]
IDS = {"input_ids": [[2, 40, 4, 3], [2, 4, 3, 0]], "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]]}
PREDICT = "/v1/models/RUN:predict"


@pytest.fixture(scope="module")
def exported(finished_run: Path) -> Any:
    """The signatures of the run's SavedModel, as arrays or scalars."""
    import tensorflow as tf

    functions = tf.saved_model.load(str(finished_run / "saved_model")).signatures

    def call(name: str, **inputs: Any) -> dict[str, Any]:
        outputs = functions[name](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: value.numpy() for key, value in outputs.items()}

    return call


def same(answer: Any, expected: np.ndarray) -> bool:
    if expected.dtype == object:
        decoded = np.vectorize(lambda value: value.decode(), otypes=[object])(expected)
        return bool(np.array_equal(np.array(answer, object), decoded))
    return np.shape(answer) == expected.shape and np.allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize("path", ["/v1/models/RUN", "/v1/models/RUN/versions/1"])
def test_the_status_is_as_documented(server: Server, path: str) -> None:
    status = {"error_code": "OK", "error_message": ""}
    assert server.client.get(path).json() == {
        "model_version_status": [{"version": "1", "state": "AVAILABLE", "status": status}]
    }


@pytest.mark.parametrize("model", ["RUN", "RUN-2"])
def test_the_metadata_is_that_of_the_exported_model(server: Server, finished_run: Path, model: str) -> None:
    from google.protobuf.json_format import MessageToDict
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((finished_run / "saved_model" / "saved_model.pb").read_bytes())
    expected = {
        name: MessageToDict(each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for name, each in saved.meta_graphs[0].signature_def.items()
        if not name.startswith("__")
    }
    answer = server.client.get(f"/v1/models/{model}/metadata").json()
    assert answer == server.client.get(f"/v1/models/{model}/versions/1/metadata").json()
    assert answer["model_spec"] == {"name": model, "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == expected.keys() == {"serving_default", "fill_mask", "encode", "logits"}
    for name, signature in signatures.items():
        assert signature["method_name"] == expected[name]["method_name"]
        for side in ("inputs", "outputs"):
            for part in ("dtype", "tensor_shape"):
                own, exported = (
                    {key: tensor[part] for key, tensor in each[side].items()} for each in (signature, expected[name])
                )
                assert own == exported, (name, side, part)


@pytest.mark.parametrize("model", ["RUN", "RUN-2"])
@pytest.mark.parametrize("signature", [{}, {"signature_name": ""}, {"signature_name": "fill_mask"}])
def test_columns_are_answered_as_by_the_exported_model(
    server: Server, exported: Any, model: str, signature: dict[str, str]
) -> None:
    body = signature | {"inputs": {"text": TEXTS, "k": 3}}
    outputs = server.client.post(f"/v1/models/{model}:predict", json=body).json()["outputs"]
    expected = exported("fill_mask", text=TEXTS, k=3)
    assert outputs.keys() == expected.keys()
    for name, value in outputs.items():
        assert same(value, expected[name]), name


def test_rows_are_answered_as_by_the_exported_model(server: Server, exported: Any) -> None:
    rows = [dict(zip(IDS, row, strict=True)) for row in zip(*IDS.values(), strict=True)]
    answer = server.client.post(PREDICT, json={"signature_name": "encode", "instances": rows}).json()
    expected = exported("encode", **{name: np.array(value, np.int32) for name, value in IDS.items()})
    assert len(answer["predictions"]) == 2
    for number, row in enumerate(answer["predictions"]):
        assert row.keys() == expected.keys()
        assert all(same(row[name], expected[name][number]) for name in row)


def test_a_single_output_has_no_name(server: Server, exported: Any) -> None:
    expected = exported("logits", **{name: np.array(value, np.int32) for name, value in IDS.items()})["logits"]
    columns = server.client.post(PREDICT, json={"signature_name": "logits", "inputs": IDS}).json()
    assert columns.keys() == {"outputs"} and same(columns["outputs"], expected)
    rows = [dict(zip(IDS, row, strict=True)) for row in zip(*IDS.values(), strict=True)]
    answer = server.client.post(PREDICT, json={"signature_name": "logits", "instances": rows}).json()
    assert answer.keys() == {"predictions"} and same(answer["predictions"], expected)


def test_base64_is_text_and_a_text_that_is_not_utf8_has_its_status(server: Server) -> None:
    texts: list[Any] = [{"b64": base64.b64encode(text).decode()} for text in (TEXTS[0].encode(), b"\xff [MASK]")]
    plain = server.client.post(PREDICT, json={"inputs": {"text": [TEXTS[0]], "k": 2}}).json()["outputs"]
    outputs = server.client.post(PREDICT, json={"inputs": {"text": texts, "k": 2}}).json()["outputs"]
    assert outputs["status"] == [0, 3]
    assert outputs["tokens"][0] == plain["tokens"][0]
    assert outputs["filled"] == [plain["filled"][0], ""]


def test_no_text_is_an_empty_answer(server: Server) -> None:
    outputs = server.client.post(PREDICT, json={"inputs": {"text": [], "k": 2}}).json()["outputs"]
    assert outputs["filled"] == outputs["tokens"] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/models/NO", 404, "Could not find any versions of model NO"),
        ("GET", "/v1/models/RUN/versions/2", 404, "Could not find version 2 of model RUN"),
        ("GET", "/v1/models/NO/metadata", 404, "Servable not found for request: Latest(NO)"),
        ("POST", "/v1/models/NO:predict", 404, "Servable not found for request: Latest(NO)"),
        ("POST", "/v1/models/RUN/versions/7:predict", 404, "Servable not found for request: Specific(RUN, 7)"),
        ("GET", "/v1/models/RUN:predict", 400, "Malformed request: GET /v1/models/RUN:predict"),
        ("POST", "/v1/models/RUN", 400, "Malformed request: POST /v1/models/RUN"),
        ("GET", "/v1/nothing", 400, "Malformed request: GET /v1/nothing"),
    ],
)
def test_paths_have_the_errors_of_tf_serving(server: Server, method: str, path: str, status: int, message: str) -> None:
    assert error_of(server.client.request(method, path, json={} if method == "POST" else None), status) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": {}, "instances": []}, "expecting only one of 'inputs' or 'instances'"),
        ({"signature_name": 5, "inputs": {}}, "'signature_name' key must be a string value."),
        ({"signature_name": "no", "inputs": {}}, 'Serving signature name: "no" not found in signature def'),
        ({"inputs": {"text": ["a"]}}, "Missing named input: k in 'inputs' object."),
        ({"inputs": ["a [MASK]"]}, "inputs is a plain value/list, but expecting an object"),
        ({"inputs": {"text": "a", "k": 1}}, "text: Encountered a value of rank 0, expected rank 1"),
        ({"inputs": {"text": [["a"]], "k": 1}}, "text: Encountered a value of rank 2, expected rank 1"),
        ({"inputs": {"text": ["a", 5], "k": 1}}, "JSON Value: 5 Type: Number is not of expected type: string"),
        ({"inputs": {"text": [None], "k": 1}}, "Type: Null is not of expected type: string"),
        ({"inputs": {"text": ["a"], "k": 1.5}}, "JSON Value: 1.5 Type: Number is not of expected type: int32"),
        ({"inputs": {"text": ["a"], "k": True}}, "Type: Boolean is not of expected type: int32"),
        ({"inputs": {"text": ["a"], "k": 2**31}}, "is not of expected type: int32"),
        ({"inputs": {"text": ["a"], "k": 0}}, "k: must be at least 1"),
        ({"inputs": {"text": [{"b64": "!"}], "k": 1}}, "Unable to base64 decode"),
        ({"inputs": {"text": [{"b64": 5}], "k": 1}}, "not formatted correctly for base64 data"),
        ({"instances": "a"}, "Expecting 'instances' to be a list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": ["a [MASK]"]}, "instances is a plain list, but expecting list of objects"),
        ({"instances": [{"text": "a"}]}, "keys must be equal to: k,text"),
        ({"instances": [{"text": "a", "k": 1}, "b"]}, "Expecting object but got String at item 1"),
        ({"instances": [{"text": "a", "k": 1}]}, "k must be a scalar"),
        (
            {"signature_name": "logits", "inputs": {"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]]}},
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        (
            {"signature_name": "logits", "inputs": {"input_ids": [[1, 2], 3], "attention_mask": [[1, 1], [1, 1]]}},
            "found at incorrect level: 2",
        ),
        (
            {"signature_name": "logits", "inputs": IDS | {"input_ids": [[2, 99_999, 4, 3]] * 2}},
            "99999",
        ),  # two operations refuse it; either is first
        ({"signature_name": "logits", "inputs": IDS | {"attention_mask": [[1, 1]]}}, "The inputs do not fit the model"),
    ],
)
def test_bodies_have_the_errors_of_tf_serving(server: Server, body: Any, message: str) -> None:
    assert message in error_of(server.client.post(PREDICT, json=body), 400)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": {"text": ["a"] * 65, "k": 1}}, "65 texts"),
        ({"inputs": {"text": ["a" * 20_001], "k": 1}}, "20,001 characters"),
        ({"inputs": {"text": ["[MASK]" * 33], "k": 1}}, "33 masks"),
        ({"inputs": {"text": ["[MASK]"], "k": 101}}, "at most 100"),
        ({"signature_name": "encode", "inputs": {n: [[1] * 100] * 100 for n in IDS}}, "10,000 ids"),
        ({"signature_name": "logits", "inputs": {n: [[1] * 80] * 80 for n in IDS}}, "1,920,000 numbers"),
    ],
)
def test_large_requests_are_refused(server: Server, body: Any, message: str) -> None:
    assert message in error_of(server.client.post(PREDICT, json=body), 400)


def test_calls_that_are_joined_are_answered_as_alone(served_run: Any) -> None:
    from tf_mlm.serving.served_model import SignatureJob

    def job(texts: list[str], k: int) -> SignatureJob:
        return SignatureJob(
            "fill_mask", {"text": np.array([t.encode() for t in texts], object), "k": np.array(k, np.int32)}
        )

    jobs = [job(TEXTS, 4), job(["none"], 2), job([], 9), job(["[MASK]"], 999), job(["a [MASK] " * 300, "[MASK]"], 1)]
    joined = served_run.answer(jobs)
    for each, together in zip(jobs, joined, strict=True):
        (alone,) = served_run.answer([each])
        for name, value in alone.items():
            assert value.shape == together[name].shape, name
            if value.dtype == object:
                assert value.tolist() == together[name].tolist()
            else:
                assert np.allclose(value, together[name], atol=1e-5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["text", "k", "[MASK]"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["text", "k", "b64", "input_ids", "attention_mask", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(["signature_name", "inputs", "instances", "x"]), JSON, max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    body=BODIES | st.fixed_dictionaries({"signature_name": st.sampled_from(["logits", "fill_mask"]), "inputs": JSON})
)
def test_any_object_is_a_call_or_refused(served_run: Any, body: dict[str, Any]) -> None:
    from tf_mlm.serving.requests import RequestError
    from tf_mlm.serving.tf_serving import read_predict

    try:
        job, _ = read_predict(body, served_run, served_run.limits)
    except RequestError as error:
        assert error.status == 400 and "\n" not in str(error) and len(str(error)) < 500
    else:
        assert job.inputs.keys() == served_run.signatures[job.signature].inputs.keys()


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_gets_an_answer(server: Server, body: bytes) -> None:
    response: httpx.Response = server.client.post(PREDICT, content=body)
    error_of(response, 400)
