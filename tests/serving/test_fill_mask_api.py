"""Hugging Face's fill-mask API, with its own client and against the pipeline of transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.conftest import Server, error_of

ONE, TWO = "This is a [MASK] film.", "The [MASK] was not [MASK]."


@pytest.fixture(scope="module")
def pipeline(finished_run: Path) -> Any:
    import transformers

    return transformers.pipeline(
        "fill-mask", model=str(finished_run / "model"), framework="tf", torch_dtype=None, device=-1
    )


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the client send requests, in spite of the tests' HF_HUB_OFFLINE."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.utils.reset_sessions()
    yield
    huggingface_hub.utils.reset_sessions()


def assert_same(found: Any, expected: Any) -> None:
    """Compare two answers; the probabilities of other batches differ in the last digits."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
        return
    assert found["score"] == pytest.approx(expected["score"], rel=1e-4)
    assert {**found, "score": 0} == {**expected, "score": 0}


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("path", ["", "models/RUN"])
@pytest.mark.parametrize("text", [ONE, TWO])
def test_the_client_gets_what_the_pipeline_returns(server: Server, pipeline: Any, path: str, text: str) -> None:
    client = InferenceClient(model=f"{server.address}{path}")
    targets: list[Any] = [{"targets": ["the", "film"]}, {"targets": ["film", "the", "a"], "top_k": 2}]
    # The pipeline in TensorFlow fails for targets at several masks.
    for options in [{}, {"top_k": 3}, *(targets if text == ONE else [])]:
        answer = client.fill_mask(text, **options)
        as_dicts = [[dict(fill) for fill in fills] if isinstance(fills, list) else dict(fills) for fills in answer]
        for each in [fill for fills in as_dicts for fill in (fills if isinstance(fills, list) else [fills])]:
            each.pop("fill_mask_output_token_str", None)
        assert_same(as_dicts, pipeline(text, **options))


@pytest.mark.usefixtures("online")
def test_the_base_url_of_the_client_is_the_address(server: Server) -> None:
    answer = InferenceClient(base_url=server.address).fill_mask(ONE, top_k=1)
    assert [(each.token_str, each.sequence) for each in answer] == [
        (each["token_str"], each["sequence"])
        for each in server.client.post("/", json={"inputs": ONE, "parameters": {"top_k": 1}}).json()
    ]


@pytest.mark.usefixtures("online")
def test_the_client_shows_the_reason_of_a_refusal(server: Server) -> None:
    with pytest.raises(HfHubHTTPError, match=r"no \[MASK\]"):
        InferenceClient(model=server.address).fill_mask("no mask")


def test_a_saved_model_fills_as_its_weights(server: Server) -> None:
    body = {"inputs": TWO, "parameters": {"top_k": 3}}
    weights, saved = (server.client.post(f"/models/{name}", json=body).json() for name in ("RUN", "RUN-2"))
    for one, other in zip(weights, saved, strict=True):
        assert [fill["token"] for fill in one] == [fill["token"] for fill in other]
        assert [fill["score"] for fill in one] == pytest.approx([fill["score"] for fill in other], rel=1e-4)
    assert saved[0][0]["sequence"] == TWO.replace("[MASK]", saved[0][0]["token_str"], 1)
    refused = server.client.post("/models/RUN-2", json={"inputs": ONE, "parameters": {"targets": ["film"]}})
    assert "SavedModel" in error_of(refused, 400)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs: is missing"),
        ({"inputs": None}, "inputs: must be a string"),
        ({"inputs": [ONE]}, "inputs: must be a string"),
        ({"inputs": "no mask"}, "no [MASK]"),
        ({"inputs": ""}, "no [MASK]"),
        ({"inputs": "x" * 20_001}, "20,001 characters"),
        ({"inputs": "a [MASK] " * 400}, "positions"),
        ({"inputs": "[MASK]" * 33}, "33 masks"),
        ({"inputs": ONE, "parameters": 5}, "parameters: must be an object"),
        ({"inputs": ONE, "parameters": {"top_k": 0}}, "top_k: must be an integer from 1 to 100"),
        ({"inputs": ONE, "parameters": {"top_k": 101}}, "top_k: must be an integer from 1 to 100"),
        ({"inputs": ONE, "parameters": {"top_k": True}}, "top_k: must be an integer"),
        ({"inputs": ONE, "parameters": {"top_k": "5"}}, "top_k: must be an integer"),
        ({"inputs": ONE, "parameters": {"targets": [5]}}, "targets: must be a list of strings"),
        ({"inputs": ONE, "parameters": {"targets": []}}, "targets: has 0 words"),
        ({"inputs": ONE, "parameters": {"targets": ["the"] * 101}}, "targets: has 101 words"),
        ({"inputs": ONE, "parameters": {"targets": ["the zebras"]}}, "not one token of the vocabulary"),
        ({"inputs": ONE, "parameters": {"targets": ["北京"]}}, "not one token of the vocabulary"),
    ],
)
def test_wrong_requests_are_refused_with_a_reason(server: Server, body: Any, message: str) -> None:
    assert message in error_of(server.client.post("/", json=body), 400)


def test_an_unknown_model_is_not_found(server: Server) -> None:
    assert "Model NO does not exist; the models are RUN, RUN-2" in error_of(server.client.post("/models/NO"), 404)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([ONE, "film"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["top_k", "targets", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(st.sampled_from(["inputs", "parameters", "options"]), JSON, max_size=3))
def test_any_object_is_a_job_or_refused(body: dict[str, Any]) -> None:
    from tf_mlm.serving.fill_mask_api import read_fill_job
    from tf_mlm.serving.requests import Limits, RequestError

    try:
        job = read_fill_job(body, Limits())
    except RequestError as error:
        assert error.status == 400 and "\n" not in str(error) and len(str(error)) < 200
    else:
        assert job.text == body["inputs"] and 1 <= job.top_k <= 100


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_gets_an_answer(server: Server, body: bytes) -> None:
    error_of(server.client.post("/", content=body), 400)
