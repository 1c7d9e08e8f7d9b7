import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.process import serving_process
from tf_mlm.commands.main import main

FILL = {"inputs": "This is a [MASK] film."}


def test_sigterm_finishes_the_requests_under_way(finished_run: Path) -> None:
    with serving_process(finished_run, "--batch-wait", "3000") as server:
        answers: list[Any] = []

        def ask() -> None:
            answers.append(httpx.post(server.address, json=FILL, timeout=60))

        def is_waiting() -> bool:
            return 'tf_mlm_waiting_requests{model="RUN"} 1.0' in httpx.get(f"{server.address}metrics").text

        # After a batch of several requests, a single one waits for others for three seconds. The last of these batches
        # may have had one request: then it does not wait, and all are sent again.
        while True:
            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            expected = answers[0].json()
            answers.clear()
            waiting = threading.Thread(target=ask)
            waiting.start()
            while waiting.is_alive() and not is_waiting():
                pass
            if waiting.is_alive():
                break
        with socket.create_connection(("127.0.0.1", server.port)) as incomplete:
            incomplete.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert not answers and server.process.poll() is None
            incomplete.sendall(b" " * 99)  # not JSON: answered, although too late to be computed
            assert b" 400 " in incomplete.recv(1000).split(b"\r\n")[0]
        waiting.join()
        out, err = server.process.communicate(timeout=60)
    (answer,) = answers
    assert answer.status_code == 200
    assert [each["token"] for each in answer.json()] == [each["token"] for each in expected]
    assert server.process.returncode == 0
    assert out.splitlines()[-1] == f"serving    {server.address}  (Ctrl-C stops)"
    assert err == ""


def test_a_run_and_another_model(finished_run: Path) -> None:
    with serving_process(finished_run, finished_run / "saved_model", "--max-waiting", "1") as server:
        found = httpx.get(f"{server.address}page/models").json()
        assert [(each["name"], each["role"]) for each in found["models"]] == [("RUN", "model"), ("RUN-2", "model")]
        assert found["runs"] == ["RUN"] and len(found["examples"]) == 7
        server.process.send_signal(signal.SIGINT)
        _, err = server.process.communicate(timeout=60)
    assert (server.process.returncode, err) == (0, "")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The only line of an invocation that is refused."""
    assert main(["serve", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_what_cannot_be_served_is_refused_in_one_line(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file or directory" in refusal(capsys, tmp_path / "none", "--port", "0")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(capsys, tmp_path / "empty", "--port", "0")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "saved_model.pb").write_bytes(b"damaged")
    assert "cannot be loaded" in refusal(capsys, tmp_path / "damaged", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        line = refusal(capsys, finished_run, "--port", port)
    assert f"--port {port}: Address already in use; pass another --port or --host" in line
    assert "--port 65536: must be from 0 to 65535" in refusal(capsys, finished_run, "--port", "65536")
    assert "--host 192.0.2.1" in refusal(capsys, finished_run, "--host", "192.0.2.1")
    assert "--allow-host '*'" in refusal(capsys, finished_run, "--allow-host", "*")
    assert "--batch-texts 0: must be at least 1" in refusal(capsys, finished_run, "--batch-texts", "0")
    assert "--batch-wait nan: must be at least 0" in refusal(capsys, finished_run, "--batch-wait", "nan")


def test_answers_are_sent_without_delay() -> None:
    """asyncio sets TCP_NODELAY for a socket of this protocol."""
    from tf_mlm.serving.server import bind

    for host in ("127.0.0.1", "localhost"):
        with bind(host, 0) as bound:
            assert bound.proto == socket.IPPROTO_TCP


def test_another_host_prints_a_warning(finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from tf_mlm.serving import server

    hosts = []
    monkeypatch.setattr(server, "serve", lambda app, *_: hosts.append(app.user_middleware[1].kwargs["allowed_hosts"]))
    common = ["localhost", "127.0.0.1", "[::1]"]
    assert main(["serve", str(finished_run), "--port", "0"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["serve", str(finished_run), "--port", "0", "--host", "0.0.0.0", "--allow-host", "lab"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: --host 0.0.0.0: other machines can reach this server, which has no authentication")
    assert hosts == [[*common, "127.0.0.1"], [*common, "0.0.0.0", "lab"]]


def test_without_the_extra_it_is_named(finished_run: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None\nfrom tf_mlm.commands.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", str(finished_run)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "error: serve: requires the package uvicorn; install it with: pip install -c requirements.txt -e '.[serve]'\n"
    )
