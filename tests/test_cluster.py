"""The workers of multi-worker training find each other, or are refused with one line."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tf_mlm.cluster import Cluster, find_cluster, join, welcome
from tf_mlm.config import Config, load_config
from tf_mlm.errors import Refused

TWO = {"worker": ["a:1", "b:2"]}


def settings(seconds: float = 5.0, strategy: str = "auto") -> Config:
    return load_config(None, {"distribution.timeout_seconds": seconds, "distribution.strategy": strategy})


def find(monkeypatch: pytest.MonkeyPatch, value: Any, strategy: str = "auto") -> Cluster | None:
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))
    return find_cluster(settings(strategy=strategy))


def loopback(number: int) -> tuple[str, ...]:
    """Addresses of `number` free ports."""
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = tuple(f"127.0.0.1:{server.getsockname()[1]}" for server in with_ports)
    for server in with_ports:
        server.close()
    return addresses


def task(kind: str = "worker", index: Any = 0) -> dict[str, Any]:
    return {"type": kind, "index": index}


def test_the_workers_of_tf_config_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, {"cluster": TWO, "task": task(index=1)}) == Cluster(("a:1", "b:2"), 1)


def test_a_chief_is_worker_0(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {"worker": ["a:1"], "chief": ["c:3"]}
    found = [find(monkeypatch, {"cluster": jobs, "task": task(kind)}) for kind in ("chief", "worker")]
    assert found == [Cluster(("c:3", "a:1"), 0), Cluster(("c:3", "a:1"), 1)]
    assert [cluster.is_chief for cluster in found if cluster] == [True, False]


def test_one_worker_trains_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(monkeypatch, {"cluster": {"worker": ["a:1"]}, "task": task()}) is None
    monkeypatch.delenv("TF_CONFIG")
    assert find_cluster(settings()) is None


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_a_strategy_for_one_machine_ignores_tf_config(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    assert find(monkeypatch, {"cluster": TWO, "task": task()}, strategy) is None


def test_multi_worker_requires_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(Refused, match="'multi_worker': neither TF_CONFIG nor SLURM describes several workers; set"):
        find_cluster(settings(strategy="multi_worker"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "^TF_CONFIG: not JSON: .*; fix it, or unset it to train alone$"),
        ("[]", "^TF_CONFIG: must have the form"),
        ({"cluster": TWO}, "^TF_CONFIG: must have the form"),
        ({"cluster": {"worker": [1, 2]}, "task": task()}, "^TF_CONFIG: must have the form"),
        ({"cluster": TWO, "task": task(index=2)}, "task is 'worker' 2, which the cluster does not have; it has 2 of"),
        ({"cluster": TWO, "task": task(index=-1)}, "task is 'worker' -1"),
        ({"cluster": TWO, "task": task(index="1")}, "task is 'worker' '1'"),
        ({"cluster": TWO, "task": task("chief")}, "task is 'chief' 0"),
        ({"cluster": {**TWO, "ps": ["d:4"]}, "task": task()}, "the job 'ps'; only 'chief' and 'worker'"),
        ({"cluster": {"worker": ["a:1", "b"]}, "task": task()}, "'b' is not of the form host:port"),
        ({"cluster": {"worker": ["a:1", "b:port"]}, "task": task()}, "'b:port' is not of the form"),
        ({"cluster": {"worker": ["a:1", "b:65536"]}, "task": task()}, "'b:65536' is not of the form .* below 65536"),
        ({"cluster": {"worker": ["a:1", "a:1"]}, "task": task()}, "two workers have the same address"),
    ],
)
def test_a_wrong_tf_config_is_refused(monkeypatch: pytest.MonkeyPatch, value: Any, message: str) -> None:
    with pytest.raises(Refused, match=message) as error:
        find(monkeypatch, value)
    assert "\n" not in str(error.value)


def test_the_workers_of_a_slurm_step_are_found(monkeypatch: pytest.MonkeyPatch, tensorflow: None) -> None:
    variables = {
        "STEP_NUM_TASKS": "3",
        "PROCID": "2",
        "STEP_NODELIST": "node[1-2]",
        "STEP_TASKS_PER_NODE": "2,1",
    }
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert find_cluster(settings()) == Cluster(("node1:8888", "node1:8889", "node2:8888"), 2, "SLURM")


def meet(
    addresses: tuple[str, ...], given: list[dict[str, Any]], seconds: float = 20.0, ends_early: int = -1
) -> list[Any]:
    """What each worker receives, or its `Refused`; worker 0 sends {"config": "x"}."""
    config = settings(seconds)
    results: list[Any] = [None] * len(addresses)

    def run(index: int) -> None:
        cluster = Cluster(addresses, index)
        try:
            if cluster.is_chief:
                meeting = welcome(cluster, config, given[0], {"config": "x"})
            else:
                meeting, results[index] = join(cluster, config.distribution, given[index])
            with meeting:
                if index != ends_early:
                    meeting.finish()
        except Refused as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in reversed(range(len(addresses)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_chief_sends_its_run_to_all_workers() -> None:
    large = {"data.dataset": "x" * 10_000}  # more than one packet
    assert meet(loopback(4), [large] * 4) == [None, *[{"config": "x"}] * 3]


def test_workers_with_other_settings_are_refused() -> None:
    chief, worker = meet(loopback(2), [{"training.epochs": "3"}, {"training.epochs": "4"}])
    message = "worker 1 was started with training.epochs = '4', and worker 0 with '3'; start all workers with the same"
    assert str(chief) == str(worker) == f"{message} settings"


def test_a_connection_that_is_not_a_worker_is_ignored() -> None:
    addresses = loopback(2)
    port = int(addresses[0].rpartition(":")[2])

    def disturb() -> None:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[1]\n", b'{"worker": "x"}\n', b""):
            for _ in range(100):
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                        connection.sendall(data)
                    break
                except OSError:
                    time.sleep(0.05)

    thread = threading.Thread(target=disturb)
    thread.start()
    results: list[Any] = []
    chief = threading.Thread(
        target=lambda: results.append(welcome(Cluster(addresses, 0), settings(20), {}, {"config": "x"}))
    )
    chief.start()
    thread.join()
    meeting, received = join(Cluster(addresses, 1), settings(20).distribution, {})
    chief.join()
    with meeting, results[0]:
        assert received == {"config": "x"}


@pytest.mark.parametrize("ended", [0, 1])
def test_a_worker_that_ends_after_the_meeting_is_named(ended: int) -> None:
    results = meet(loopback(2), [{}, {}], ends_early=ended)
    assert str(results[1 - ended]).startswith(f"TF_CONFIG: worker {ended} ended before training started (")


def test_a_worker_that_does_not_connect_is_named() -> None:
    addresses = loopback(3)
    with pytest.raises(Refused) as error:
        welcome(Cluster(addresses, 0), settings(0.3), {}, {})
    assert str(error.value) == (
        f"TF_CONFIG: worker 1 ({addresses[1]}), 2 ({addresses[2]}) did not connect within 0.3 s; start all workers, or "
        "raise distribution.timeout_seconds"
    )


def test_a_chief_that_does_not_answer_is_named() -> None:
    addresses = loopback(2)
    with pytest.raises(Refused, match=f"^TF_CONFIG: worker 0 at {addresses[0]} did not answer within 0.5 s .*; start"):
        join(Cluster(addresses, 1), settings(0.5).distribution, {})


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_is_refused(index: int) -> None:
    addresses = loopback(2)
    with (
        socket.create_server(("", int(addresses[index].rpartition(":")[2]))),
        pytest.raises(Refused, match=f"^TF_CONFIG: the port of worker {index}, .* cannot be used: Address .* in use"),
    ):
        cluster = Cluster(addresses, index)
        welcome(cluster, settings(), {}, {}) if cluster.is_chief else join(cluster, settings().distribution, {})


def test_a_wrong_tf_config_ends_the_command_with_one_line_and_no_files(tmp_path: Path) -> None:
    environment = os.environ | {"TF_CONFIG": "{", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), "--config", "sample"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: TF_CONFIG: not JSON") and ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_workers_with_other_addresses_are_refused() -> None:
    addresses = (*loopback(2), "127.0.0.1:1")
    results: list[Any] = []

    def welcome_one() -> None:
        with pytest.raises(Refused) as error:
            welcome(Cluster(addresses[:2], 0), settings(20), {}, {})
        results.append(str(error.value))

    chief = threading.Thread(target=welcome_one)
    chief.start()
    with pytest.raises(Refused, match="worker 1 has other addresses than worker 0; pass the same list") as error:
        join(Cluster(addresses, 1), settings(20).distribution, {})
    chief.join()
    assert results == [str(error.value)]


def test_several_workers_refuse_to_train_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": TWO, "task": task()}))
    with pytest.raises(Refused, match="^objective.name = 'classification': several workers can only train masked"):
        find_cluster(load_config(None, {"objective.name": "classification"}))
