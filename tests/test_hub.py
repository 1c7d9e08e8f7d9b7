"""Claims about names that mean the Hub, and about telling whether it is in reach."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tf_mlm import hub
from tf_mlm.errors import HubOutOfReach, Refused


@pytest.mark.parametrize(
    "name",
    ["imdb", "stanfordnlp/imdb", "distilbert-base-uncased", "a.b/c_d-e", "google/electra-small", "v1.0", "o/my.texts"],
)
def test_names_that_mean_the_hub(tmp_path, monkeypatch, name):
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
def test_names_written_like_paths_are_local_even_where_nothing_is_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert hub.is_local(name)


def test_a_name_that_exists_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stanfordnlp" / "imdb").mkdir(parents=True)
    assert hub.is_local("stanfordnlp/imdb") and hub.is_local("stanfordnlp") and not hub.is_local("stanfordnlp/other")


def test_check_local_gives_the_path_with_the_home_folder_put_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    assert hub.check_local("~/texts", "model.name") == tmp_path / "texts"
    with pytest.raises(Refused) as refused:
        hub.check_local("~/te\nxts", "model.name")
    assert str(refused.value) == ("model.name = '~/te\\nxts': no such file or folder; a Hub name is written owner/name")


# --- in reach or not


@pytest.fixture
def online(monkeypatch) -> None:
    """The environment of someone who has set nothing; what `connect` sets is undone."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NO_PROXY", "*")


@contextmanager
def serving(status: int, asked: list[str], drip: threading.Event | None = None) -> Iterator[str]:
    """An endpoint on loopback that answers HEAD with `status`; or, with `drip`, byte by byte until that is set."""

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
        return held.getsockname()[1]


@pytest.mark.parametrize("status", [200, 302, 401, 404, 500, 503])
def test_any_answer_counts_as_reached_an_error_too(online, monkeypatch, status):
    asked: list[str] = []
    with serving(status, asked) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint + "/")
        hub.connect()
    assert asked == ["/"]
    assert os.environ["HF_HUB_OFFLINE"] == "" and not hub.is_offline()


def test_no_answer_sets_the_process_offline(online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    hub.connect()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and hub.is_offline()


@pytest.mark.parametrize(
    "endpoint", ["no-url", "http://a..b", "http://[::1", "ftp://127.0.0.1", "http://127.0.0.1:99999"]
)
def test_an_endpoint_that_is_no_url_is_out_of_reach_and_prints_nothing(online, monkeypatch, capfd, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    hub.connect()
    assert hub.is_offline()
    assert capfd.readouterr() == ("", "")


def test_the_wait_is_limited_even_where_bytes_keep_coming(online, monkeypatch):
    monkeypatch.setattr(hub, "_CONNECT_SECONDS", 1)
    stop, asked = threading.Event(), []
    with serving(200, asked, drip=stop) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        start = time.monotonic()
        hub.connect()
        waited = time.monotonic() - start
        stop.set()
    assert asked == ["/"] and hub.is_offline()
    assert 0.9 < waited < 5


def test_the_wait_leaves_room_within_fifteen_seconds():
    assert 5 <= hub._CONNECT_SECONDS <= 13


@pytest.mark.parametrize("value", ["1", "on", "YES", "True"])
@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_someone_who_is_offline_by_choice_is_not_kept_waiting(online, monkeypatch, name, value):
    asked: list[str] = []
    with serving(200, asked) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv(name, value)
        hub.connect()
    assert asked == [] and os.environ[name] == value


def test_the_endpoint_is_the_hub_unless_set(online, monkeypatch):
    assert hub.endpoint() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/hf/")
    assert hub.endpoint() == "http://mirror/hf"


# --- what is said


def test_out_of_reach_says_what_was_tried_and_the_three_ways_on(online, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = hub.refusal("model.name", "o/n", ConnectionError("long story"))
    assert isinstance(refused, HubOutOfReach)
    assert str(refused) == (
        "model.name = 'o/n': no connection to https://huggingface.co and not in the cache; connect once, name a local "
        "folder, or run the sample: python train.py --config configs/sample.toml"
    )


def test_off_line_a_damaged_cache_is_not_out_of_reach(online, monkeypatch):
    """Else the bare default would train the sample in its place."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = hub.refusal("model.name", "o/n", ValueError("header too large"))
    assert type(refused) is Refused
    assert str(refused) == "model.name = 'o/n': what the cache holds of it cannot be loaded: header too large"


def test_a_full_disk_is_no_fault_of_the_hub(online):
    error = RuntimeError("could not prepare the data")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left on device"):
        hub.refusal("data.dataset", "o/n", error)


def test_an_answer_with_an_error_is_told_in_one_line_and_is_not_out_of_reach(online):
    refused = hub.refusal("data.dataset", "o/n", ValueError("404\n\n  Repository\tNot Found"))
    assert type(refused) is Refused
    assert str(refused) == (
        "data.dataset = 'o/n': the Hub (https://huggingface.co) does not give it: 404 Repository Not Found"
    )
    assert str(hub.refusal("x", "y", KeyError())).endswith("does not give it: KeyError")
