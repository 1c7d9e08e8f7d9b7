"""Many clients at once, some of which send bad requests."""

import http.client
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.process import serving_process

NUM_REQUESTS, NUM_CLIENTS = 10_000, 64
WORDS = ["film", "plot", "story", "music", "actor", "scene", "ending", "director"]
BAD = [
    ("/", b"not JSON", 400),
    ("/", json.dumps({"inputs": "no mask"}).encode(), 400),
    ("/", json.dumps({"inputs": "a [MASK] " * 400}).encode(), 400),
    ("/", json.dumps({"inputs": "a [MASK]", "parameters": {"top_k": 0}}).encode(), 400),
    ("/models/NO", json.dumps({"inputs": "a [MASK]"}).encode(), 404),
    ("/v1/models/RUN:predict", json.dumps({"inputs": {"text": [5], "k": 1}}).encode(), 400),
    ("/page/score", json.dumps({"model": "RUN", "text": "a [MASK]"}).encode(), 400),
]


def good_requests() -> list[tuple[str, bytes]]:
    """Requests of several routes and lengths."""
    requests: list[tuple[str, Any]] = []
    for one, two in itertools.permutations(WORDS, 2):
        text = f"The {one} of this [MASK] and the {two} was a [MASK]."
        requests += [
            ("/", {"inputs": text, "parameters": {"top_k": 3}}),
            ("/page/fill", {"model": "RUN", "text": f"A {one} [MASK] {two}.", "top_k": 2}),
            ("/v1/models/RUN:predict", {"inputs": {"text": [text, f"[MASK] {one}", two], "k": 4}}),
            ("/page/score", {"model": "RUN", "text": f"The {one}."}),
            ("/page/segments", {"text": text}),
        ]
    return [(path, json.dumps(body).encode()) for path, body in requests]


def shape_of(answer: Any) -> Any:
    """An answer with its numbers rounded: the last digits depend on the other requests of the batch."""
    if isinstance(answer, dict):
        return {name: shape_of(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [shape_of(value) for value in answer]
    return pytest.approx(answer, rel=1e-3, abs=1e-6) if isinstance(answer, float) else answer


@pytest.mark.slow
def test_no_answer_is_lost_or_wrong_and_the_memory_does_not_grow(finished_run: Path) -> None:
    with serving_process(finished_run) as server:
        good = good_requests()
        with httpx.Client(base_url=server.address, timeout=60) as client:
            expected = [shape_of(client.post(path, content=body).json()) for path, body in good]
        numbers = itertools.count()
        problems: list[Any] = []
        statuses: list[int] = []
        memory: dict[int, int] = {}

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            for number in numbers:  # `next` of a count is atomic
                if number >= NUM_REQUESTS:
                    break
                is_bad = number % 10 == 3
                path, body, status = BAD[number // 10 % len(BAD)] if is_bad else (*good[number % len(good)], 200)
                connection.request("POST", path, body)
                response = connection.getresponse()
                answer = json.loads(response.read())
                statuses.append(response.status)
                if response.status != status or (not is_bad and answer != expected[number % len(good)]):
                    problems.append((number, path, body, response.status, answer))
                if number % 1000 == 999:
                    memory[number + 1] = psutil.Process(server.process.pid).memory_info().rss
            connection.close()

        threads = [threading.Thread(target=ask) for _ in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print({number: f"{size / 2**20:.0f} MiB" for number, size in sorted(memory.items())})
        assert problems == []
        assert len(statuses) == NUM_REQUESTS and statuses.count(200) == NUM_REQUESTS * 9 // 10
        assert max(memory.values()) < 1.05 * memory[3000]
        assert server.stop()[0] == 0
