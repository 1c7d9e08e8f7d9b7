"""A server with the models of a finished run, in a thread of this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.serving.page_stub import serving


class Server(NamedTuple):
    """A running server. Read-only.

    Attributes:
        client: sends requests to it.
        service: its models and queues.
        app: its application.
        address: ends with a slash.
    """

    client: httpx.Client
    service: Any
    app: Any
    address: str


@pytest.fixture(scope="session")
def served_run(finished_run: Path) -> Any:
    """The served model of the run. Read-only."""
    from tf_mlm.serving.requests import Limits
    from tf_mlm.serving.served_model import load_served

    return load_served(str(finished_run), Limits())


@pytest.fixture(scope="session")
def served_saved_model(finished_run: Path, served_run: Any) -> Any:
    """The SavedModel of the run. Read-only."""
    from tf_mlm.serving.served_model import load_served

    return load_served(str(finished_run / "saved_model"), served_run.limits, [served_run.name])


@pytest.fixture(scope="session")
def server(served_run: Any, served_saved_model: Any) -> Iterator[Server]:
    """A server of the run, `RUN`, and its SavedModel, `RUN-2`."""
    from tf_mlm.serving.app import build_app
    from tf_mlm.serving.page import PageContent, find_examples
    from tf_mlm.serving.service import Service

    found = served_run.loaded.found
    examples = find_examples(served_run.loaded.tokenizer, found.run, found.config)
    roles = {served_run.name: "model", served_saved_model.name: "model"}
    service = Service([served_run, served_saved_model], served_run.limits)
    content = PageContent(roles, examples, {served_run.name: (found.run, found.config)})
    app = build_app(service, content, ["localhost", "127.0.0.1", "[::1]", "allowed.example"])
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield Server(client, service, app, address)


def error_of(response: httpx.Response, status: int) -> str:
    """The message of a response, after a check that it is an error with this status."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    message = response.json()["error"]
    assert isinstance(message, str) and message and "\n" not in message and "Traceback" not in message
    return message
