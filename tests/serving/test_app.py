"""The checks of every request and the headers of every response."""

import asyncio
import base64
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.serving.conftest import Server, error_of
from tests.serving.page_stub import serving

FILL = {"model": "RUN", "text": "This is a [MASK] film."}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]:8501", "allowed.example"])
def test_requests_to_allowed_hosts_are_answered(server: Server, host: str) -> None:
    assert server.client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "allowed.example.evil", "10.0.0.1", "", "a b"]
)
def test_requests_to_other_hosts_are_refused(server: Server, host: str) -> None:
    for path in ("/", "/healthz", "/page/models"):
        response = server.client.get(path, headers={"Host": host})
        assert response.status_code == 400 and "host" in response.text.lower()


def test_requests_of_other_origins_are_refused(server: Server) -> None:
    own = server.address.rstrip("/")
    assert server.client.post("/page/fill", json=FILL, headers={"Origin": own}).status_code == 200
    for origin in ("http://evil.example", "null", f"{own}.evil.example", "https://localhost"):
        response = server.client.post("/page/fill", json=FILL, headers={"Origin": origin})
        assert "other origins" in error_of(response, 403)


def test_the_page_allows_only_its_own_script_and_style(server: Server) -> None:
    response = server.client.get("/")
    html = files("tf_mlm.serving").joinpath("page.html").read_text(encoding="utf-8")
    assert response.text == html
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


@pytest.mark.parametrize("path", ["/", "/healthz", "/nothing", "/page/models", "/v1/models/NO", "/metrics"])
def test_every_response_has_the_headers(server: Server, path: str) -> None:
    headers = server.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not {"set-cookie", "access-control-allow-origin"} & headers.keys()


POSTS = ["/", "/models/RUN", "/v1/models/RUN:predict", "/page/segments", "/page/fill", "/page/score"]
BODIES = {
    b"": "JSON Parse error",
    b"{": "JSON Parse error",
    b"[]": "must be an object",
    b"\xff\xfe": "JSON Parse error",
    b'{"text": NaN}': "NaN is not JSON",
    b'{"text": -Infinity}': "-Infinity is not JSON",
    b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": "nested too deeply",
    b'{"text": ' + b"9" * 5000 + b"}": "JSON Parse error",
}


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_not_json_are_refused(server: Server, path: str) -> None:
    for body, message in BODIES.items():
        assert message in error_of(server.client.post(path, content=body), 400)


@pytest.mark.parametrize("path", POSTS)
def test_large_bodies_are_refused(server: Server, path: str) -> None:
    text = json.dumps({"text": "x" * 2**20}).encode()
    assert "larger than 1,048,576 bytes" in error_of(server.client.post(path, content=text), 413)
    chunks = (text[start : start + 2**16] for start in range(0, len(text), 2**16))
    with httpx.Client(base_url=server.address) as client:  # the server closes this connection
        assert "larger than" in error_of(client.post(path, content=chunks), 413)


def test_a_body_that_is_announced_too_large_is_not_awaited(server: Server) -> None:
    address = urlsplit(server.address)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    connection.putrequest("POST", "/page/fill")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/page.html", 404),
        ("GET", "/..%2f..%2fetc/passwd", 404),
        ("GET", "/page/runs/..%2F..%2Fetc", 404),
        ("GET", "/page/fill", 405),
        ("POST", "/healthz", 405),
        ("PUT", "/", 405),
    ],
)
def test_paths_that_do_not_exist_are_refused(server: Server, method: str, path: str, status: int) -> None:
    assert "openapi.json" in error_of(server.client.request(method, path), status)


def test_the_api_is_described(server: Server) -> None:
    from tf_mlm.serving.app import path_of

    described = server.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    routes: dict[str, set[str]] = {}
    for route in server.app.routes:
        if path_of(route) != "/v1/{path}":  # refuses other paths
            routes.setdefault(path_of(route), set()).update(each.lower() for each in route.methods - {"HEAD"})
    assert {path: set(item) - {"parameters"} for path, item in described["paths"].items()} == routes
    for path, item in described["paths"].items():
        in_path = {each["name"] for each in item.get("parameters", []) if each["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        for method in set(item) - {"parameters"}:
            assert ("requestBody" in item[method]) == (method == "post")
            assert item[method]["responses"].keys() == {"200", "default"}


def metric(server: Server, line: str) -> float:
    text = server.client.get("/metrics").text
    found = re.findall(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_requests_are_measured_by_route_and_status(server: Server) -> None:
    names = {
        "ok": 'tf_mlm_requests_total{route="/page/fill",status="200"}',
        "refused": 'tf_mlm_requests_total{route="/page/fill",status="400"}',
        "unknown": 'tf_mlm_requests_total{route="none",status="404"}',
        "timed": 'tf_mlm_request_seconds_count{route="/page/fill"}',
        "batches": 'tf_mlm_batch_requests_count{model="RUN"}',
    }
    before = {name: metric(server, line) for name, line in names.items()}
    server.client.post("/page/fill", json=FILL)
    server.client.post("/page/fill", json={})
    server.client.get("/an/invented/path")
    difference = {name: metric(server, line) - before[name] for name, line in names.items()}
    assert difference == {"ok": 1, "refused": 1, "unknown": 1, "timed": 2, "batches": 1}
    assert metric(server, 'tf_mlm_waiting_requests{model="RUN"}') == 0
    assert "invented" not in server.client.get("/metrics").text


class Slow:
    """A model that answers when its gate is open."""

    name = title = "slow"
    mask_token, max_tokens = "[MASK]", None
    signatures: dict[str, Any] = {}

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[str] = []

    def answer(self, jobs: Any) -> list[Any]:
        self.asked += [job.text for job in jobs]
        assert self.gate.wait(20)
        return [[] for _ in jobs]


def test_a_full_queue_and_a_stopping_server_refuse_with_a_reason(tensorflow: None) -> None:
    from tf_mlm.serving.app import build_app
    from tf_mlm.serving.page import PageContent
    from tf_mlm.serving.requests import Limits
    from tf_mlm.serving.service import Service

    model = Slow()
    service = Service([model], Limits(waiting=2))  # type: ignore[list-item]
    app = build_app(service, PageContent({"slow": "model"}, [], {}), ["127.0.0.1"])

    async def test(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:

            def fill(text: str) -> Any:
                return asyncio.create_task(client.post("/page/fill", json={"model": "slow", "text": text}))

            async def until(condition: Any) -> None:
                for _ in range(2000):
                    if condition():
                        return
                    await asyncio.sleep(0.01)
                raise AssertionError("it never happened")

            first = fill("0")
            await until(lambda: model.asked)
            waiting = [fill("1"), fill("2")]
            queue = next(iter(service._batchers.values()))
            await until(lambda: queue.num_waiting == 2)
            refused = await fill("3")
            assert "2 requests are waiting" in error_of(refused, 429) and int(refused.headers["retry-after"]) > 0
            waiting[0].cancel()  # closes its connection
            await until(lambda: queue.num_waiting == 1)
            waiting.append(fill("4"))
            await until(lambda: queue.num_waiting == 2)
            service.refuse_new()
            stopping = await fill("5")
            assert "stopping" in error_of(stopping, 503) and int(stopping.headers["retry-after"]) > 0
            assert (await client.get("/healthz")).status_code == 503
            model.gate.set()
            answers = await asyncio.gather(first, waiting[1], waiting[2])
            assert [(each.status_code, each.json()) for each in answers] == [(200, {"masks": []})] * 3

    with serving(app) as address:
        asyncio.run(test(address))
    assert model.asked == ["0", "2", "4"]


def test_an_error_of_the_server_has_no_details(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(server.service.models["RUN"], "split", fail)
    response = server.client.post("/page/segments", json={"text": "a"})
    assert error_of(response, 500) == "The server failed to answer; see its log."
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "a secret of the server" in caplog.text
    monkeypatch.undo()
    assert server.client.post("/page/segments", json={"text": "a"}).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from tf_mlm.serving import service

    monkeypatch.setattr(service, "_BODY_SECONDS", 0.1)
    address = urlsplit(server.address)
    with socket.create_connection((address.hostname, address.port)) as slow:
        slow.sendall(b"POST /page/fill HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{")
        slow.settimeout(20)
        answer = b""
        while b"}" not in answer:  # the headers and the body may arrive apart
            answer += slow.recv(2000)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within" in answer


def test_a_client_that_stops_sending_does_not_block_others(server: Server) -> None:
    address = urlsplit(server.address)
    with socket.create_connection((address.hostname, address.port)) as idle:
        idle.sendall(b"POST /page/fill HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{")
        time.sleep(0.05)
        assert server.client.post("/page/fill", json=FILL).status_code == 200
