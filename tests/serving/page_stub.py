"""A stand-in for the server of the page: canned answers of two models, without TensorFlow."""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

PAGE = Path(__file__).parents[2] / "tf_mlm" / "serving" / "page.html"
ADAPTED, STARTING = "imdb-minilm", "minilm-l6"
MASK = "[MASK]"
EXAMPLES = [
    "This is a great [MASK].",
    "The acting was [MASK] and the plot made no sense.",
    "One of the finest performances of the decade.",
]
FILLS = {
    ADAPTED: [("film", 0.47), ("movie", 0.32), ("show", 0.027), ("comedy", 0.008), ("picture", 0.0048)],
    STARTING: [("thing", 0.11), ("place", 0.09), ("film", 0.04), ("idea", 0.031), ("day", 0.0007)],
}


class Stub:
    """What the stand-in answers. Tests change the attributes while it runs.

    Attributes:
        models: the entries of `/page/models`.
        fills: fills of each mask, by model.
        fills_of_text: fills that replace these, by text and model.
        fill_delays: seconds before the answers to `/page/fill`, by text.
        words: pattern of a word, by model.
        runs: directory of each run, read as the server does: `metrics.jsonl` alone.
        states: state of each run.
        failures: (path, status, answer) of the next requests; each is used once.
        requests: path and body of each request, in order.
    """

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = [
            {"name": name, "title": name, "role": role, "mask_token": MASK, "max_tokens": 512}
            for name, role in ((ADAPTED, "adapted"), (STARTING, "starting"))
        ]
        self.examples = list(EXAMPLES)
        self.fills = {name: list(fills) for name, fills in FILLS.items()}
        self.fills_of_text: dict[str, dict[str, list[tuple[str, float]]]] = {}
        self.fill_delays: dict[str, float] = {}
        self.words = {ADAPTED: r"\w+", STARTING: r"\w+"}
        self.runs: dict[str, Path] = {}
        self.states: dict[str, str] = {}
        self.failures: list[tuple[str, int, Any]] = []
        self.requests: list[tuple[str, Any]] = []

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/page/{path:path}", self._answer, methods=["GET", "POST"]),
            ]
        )

    async def _answer(self, request: Request) -> Response:
        body: Any = await request.json() if request.method == "POST" else None
        self.requests.append((request.url.path, body))
        for failure in self.failures:
            path, status, answer = failure
            if path == request.url.path:
                self.failures.remove(failure)
                return JSONResponse(answer, status, {"Retry-After": "1"} if status == 429 else None)
        match request.path_params["path"].split("/", 1):
            case ["models"]:
                return JSONResponse({"models": self.models, "examples": self.examples, "runs": list(self.runs)})
            case ["segments"]:
                return JSONResponse(self._segments(body["text"]))
            case ["fill"]:
                await asyncio.sleep(self.fill_delays.get(body["text"], 0.0))
                return JSONResponse({"masks": self._fill(**body)})
            case ["score"] if MASK in body["text"]:
                return JSONResponse({"error": "The text has a mask."}, 400)
            case ["score"]:
                return JSONResponse(self._score(**body))
            case ["runs", name] if name in self.runs:
                return JSONResponse(self._run(name, int(request.query_params["after"])))
            case _:
                return JSONResponse({"error": "Not found."}, 404)

    async def _page(self, request: Request) -> Response:
        html = PAGE.read_text(encoding="utf-8")
        return HTMLResponse(html, headers={"Content-Security-Policy": content_security_policy(html)})

    def _segments(self, text: str) -> dict[str, Any]:
        segments = split_words(text, self.words[ADAPTED])
        num_tokens = 2 + sum(each["word"] or each["mask"] for each in segments)
        return {"segments": segments, "num_tokens": {model["name"]: num_tokens for model in self.models}}

    def _fill(self, model: str, text: str, top_k: int) -> list[dict[str, Any]]:
        fills = self.fills_of_text.get(text, self.fills)[model][:top_k]
        return [
            {
                "fills": [
                    {"token_str": word, "probability": probability, "text": text[:start] + word + text[end:]}
                    for word, probability in fills
                ]
            }
            for start, end in (found.span() for found in re.finditer(re.escape(MASK), text))
        ]

    def _score(self, model: str, text: str) -> dict[str, Any]:
        segments = split_words(text, self.words[model])
        for segment in segments:
            segment["log_probability"] = log_probability(model, segment["text"]) if segment["word"] else None
        return {"segments": segments, "log_probability": sum(each["log_probability"] or 0.0 for each in segments)}

    def _run(self, name: str, after: int) -> dict[str, Any]:
        lines = (self.runs[name] / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        events = [json.loads(line) for line in lines]
        return {
            "name": name,
            "events": events[after:],
            "next": len(events),
            "state": self.states.get(name, "finished"),
            "num_train_steps": events[0]["num_train_steps"] if events else None,
            "epochs": 20,
        }


def content_security_policy(html: str) -> str:
    """The strict policy of the server: only the script and the style of the page, by their hashes."""

    def source(tag: str) -> str:
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def split_words(text: str, word: str = r"\w+") -> list[dict[str, Any]]:
    parts = re.findall(rf"{word}|\[MASK\]|[^\w\s]|\s+", text)
    return [{"text": part, "word": part.strip() not in ("", MASK), "mask": part.strip() == MASK} for part in parts]


def log_probability(model: str, word: str) -> float:
    """A number between -12 and 0 that depends on the model and the word."""
    return -(hashlib.sha256(f"{model} {word}".encode()).digest()[0] / 256 * 12)


@contextlib.contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """Serve `app` on this machine in a thread. Yields the address of the page."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
