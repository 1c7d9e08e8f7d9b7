"""The limits of requests, their errors, and the reading of their JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True)
class Limits:
    """Limits that keep memory and time bounded.

    Attributes:
        body_bytes: size of the body of a request.
        characters: length of a text.
        texts: texts of a request.
        masks: masks of a text.
        top_k: most likely tokens of a mask, and targets.
        scored_tokens: tokens of a text to score; each of them is masked in a copy of the text.
        ids: token ids of a request to the signatures that take ids.
        numbers: numbers in an answer.
        answer_characters: characters of all fills of a text; each fill repeats the text.
        waiting: requests to a model that wait for their batch; further ones are refused.
        batch_texts: texts of a batch.
        batch_tokens: tokens of a batch, estimated from the lengths of the texts. A larger request is a batch alone.
        batch_wait: seconds that a batch waits for further requests, if the one before it had several.
    """

    body_bytes: int = 2**20
    characters: int = 20_000
    texts: int = 64
    masks: int = 32
    top_k: int = 100
    scored_tokens: int = 128
    ids: int = 8192
    numbers: int = 2**20
    answer_characters: int = 2**22
    waiting: int = 256
    batch_texts: int = 32
    batch_tokens: int = 2048
    batch_wait: float = 0.02


class RequestError(Exception):
    """A request cannot be answered. The message is one sentence for the client.

    Attributes:
        status: of the HTTP response.
        retry_after: seconds after which the request may succeed; None if repeating it does not help.
    """

    def __init__(self, message: str, status: int = 400, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        RequestError: it is not JSON, or not an object.
    """
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError("JSON Parse error: the values are nested too deeply") from None
    except ValueError as error:  # also of the decoding
        raise RequestError(f"JSON Parse error: {error}") from None
    if not isinstance(found, dict):
        raise RequestError("JSON Parse error: the body must be an object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_string(values: Mapping[str, Any], name: str) -> str:
    """The string `name` of an object.

    Raises:
        RequestError: it is missing or not a string.
    """
    if name not in values:
        raise RequestError(f"{name}: is missing; pass a string")
    if not isinstance(values[name], str):
        raise RequestError(f"{name}: must be a string")
    return str(values[name])


def read_text(values: Mapping[str, Any], name: str, limits: Limits) -> str:
    """The text `name` of an object.

    Raises:
        RequestError: it is missing, not a string, too long, or not valid Unicode.
    """
    text = read_string(values, name)
    check_text(text, name, limits)
    return text


def check_text(text: str, name: str, limits: Limits) -> None:
    """
    Raises:
        RequestError: the text is too long, or not valid Unicode.
    """
    if len(text) > limits.characters:
        raise RequestError(f"{name}: has {len(text):,} characters, and at most {limits.characters:,} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can contain half of a surrogate pair
        raise RequestError(f"{name}: is not valid Unicode (it contains a lone surrogate)") from None


def read_top_k(values: Mapping[str, Any], limits: Limits, default: int = 5) -> int:
    """The number `top_k` of an object; null and a missing value are the default.

    Raises:
        RequestError: it is not an integer, or out of its range.
    """
    top_k = values.get("top_k")
    if top_k is None:
        return default
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= limits.top_k:
        raise RequestError(f"top_k: must be an integer from 1 to {limits.top_k}")
    return top_k
