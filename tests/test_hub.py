"""Tests of resolving names and of the connection check."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tf_mlm import hub
from tf_mlm.errors import HubOutOfReach, Refused


@pytest.mark.parametrize(
    "name",
    ["imdb", "stanfordnlp/imdb", "distilbert-base-uncased", "a.b/c_d-e", "google/electra-small", "v1.0", "o/my.texts"],
)
def test_names_written_like_hub_names_are_not_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert not hub.is_local(name)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "./imdb", "../shared/data/imdb", "~", "~/texts", "~user/x", "/data", "/", "my-texts/", "a/b/c",
        "*.txt", "data/*.csv", "a b", "C:\\texts", "texts\n", "a//b", "owner/", "/name", "x\0y", "[ab]/c",
        "reviews.txt", "data/reviews.csv", "a/b.TSV", "a/b.json", "b.jsonl", "b.ndjson", "a/b.parquet", "b.txt.gz",
    ],
)  # fmt: skip
def test_names_written_like_paths_are_local_even_if_no_file_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub.is_local(name)


def test_a_name_that_exists_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stanfordnlp" / "imdb").mkdir(parents=True)
    assert hub.is_local("stanfordnlp/imdb") and hub.is_local("stanfordnlp") and not hub.is_local("stanfordnlp/other")


def test_a_source_is_a_path_or_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.Source.of("owner/name") == hub.Source("owner/name", None)
    assert hub.Source.of("~/a.txt") == hub.Source("~/a.txt", tmp_path / "a.txt")


def test_all_spellings_of_a_path_have_the_same_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    written = ("a.txt", "./a.txt", "~/a.txt", "b/../a.txt", str(tmp_path / "a.txt"))
    assert {hub.Source.of(name).absolute_path for name in written} == {str(tmp_path / "a.txt")}
    assert hub.Source.of("owner/name").absolute_path == hub.Source.of("").absolute_path == ""


# --- connection


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without Hub settings; it is restored after the test."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def serving(status: int, asked: list[str], drip: threading.Event | None = None) -> Iterator[str]:
    """A local endpoint that answers HEAD with `status`; with `drip`, it sends single bytes until the event is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.close_connection = True
            if drip is None:
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()
                return
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(80):  # 8 s, longer than the test allows
                if drip.wait(0.1):
                    break
                self.wfile.write(b"x")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@pytest.mark.parametrize("status", [200, 302, 401, 404, 500, 503])
def test_any_answer_counts_as_connected_even_an_error(
    online: None, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    asked: list[str] = []
    with serving(status, asked) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint + "/")
        hub.connect()
    assert asked == ["/"]
    assert os.environ["HF_HUB_OFFLINE"] == "" and not hub.is_offline()


def test_no_answer_sets_the_process_offline(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    hub.connect()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and hub.is_offline()


@pytest.mark.parametrize(
    "endpoint", ["no-url", "http://a..b", "http://[::1", "ftp://127.0.0.1", "http://127.0.0.1:99999"]
)
def test_an_invalid_endpoint_is_unreachable_and_prints_nothing(
    online: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    hub.connect()
    assert hub.is_offline()
    assert capfd.readouterr() == ("", "")


def test_the_wait_is_limited_even_if_bytes_arrive_slowly(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_CONNECT_SECONDS", 1)
    stop = threading.Event()
    asked: list[str] = []
    with serving(200, asked, drip=stop) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        start = time.monotonic()
        hub.connect()
        waited = time.monotonic() - start
        stop.set()
    assert asked == ["/"] and hub.is_offline()
    assert 0.9 < waited < 5


def test_the_wait_is_well_under_fifteen_seconds() -> None:
    assert 5 <= hub._CONNECT_SECONDS <= 13


@pytest.mark.parametrize("value", ["1", "on", "YES", "True"])
@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_does_not_wait(online: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    asked: list[str] = []
    with serving(200, asked) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv(name, value)
        hub.connect()
    assert asked == [] and os.environ[name] == value


def test_the_endpoint_is_the_hub_unless_set(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/hf/")
    assert hub.endpoint() == "http://mirror/hf"


# --- messages


def test_an_unreachable_hub_is_reported_with_three_options(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = hub.refusal("model.name", "o/n", ConnectionError("long story"))
    assert isinstance(refused, HubOutOfReach)
    assert str(refused) == (
        "model.name = 'o/n': no connection to https://huggingface.co and not in the cache; connect once, pass a local "
        "directory, or run the sample: python train.py --config configs/sample.toml"
    )


def test_a_damaged_cache_offline_is_not_an_unreachable_hub(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the bare default would train the sample instead."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = hub.refusal("model.name", "o/n", ValueError("header too large"))
    assert type(refused) is Refused
    assert str(refused) == "model.name = 'o/n': cannot be loaded from the cache: header too large"


def test_a_full_disk_is_not_an_error_of_the_hub(online: None) -> None:
    error = RuntimeError("could not prepare the data")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left on device"):
        hub.refusal("data.dataset", "o/n", error)


def test_an_error_of_the_hub_is_one_line_and_not_unreachable(online: None) -> None:
    refused = hub.refusal("data.dataset", "o/n", ValueError("404\n\n  Repository\tNot Found"))
    assert type(refused) is Refused
    assert str(refused) == (
        "data.dataset = 'o/n': cannot be loaded from the Hub (https://huggingface.co): 404 Repository Not Found"
    )
    assert str(hub.refusal("x", "y", KeyError())).endswith(
        "cannot be loaded from the Hub (https://huggingface.co): KeyError"
    )
