"""Training on streamed documents: kill, resume, evaluate, a damaged file, and a dataset on the Hub."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from tests.conftest import ROOT
from tests.hub_stand_in import serve
from tests.tiny_run import inside, read_metrics, timeless
from tests.training.test_devices import KILLED_AT_STEP_12
from tf_mlm.commands.main import main, train_main

SETTINGS = """
[data]
dataset = "data"
streaming = true
shuffle_buffer_size = 40
sequence_length = 32
num_validation_sequences = 20

[optimizer]
learning_rate = 5e-3

[training]
num_train_steps = 26
validate_every_steps = 10
batch_size = 8
precision = "float32"
log_every = 4

[checkpoint]
every_steps = 3
"""
FLAGS = ["--config", "stream.toml", "--output-dir", "RUN", "--resume"]


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    """A directory with 3 shards of training documents, validation documents and settings that name a tiny model."""
    (tmp_path / "data").mkdir()
    for shard in range(3):
        lines = [
            json.dumps({"text": f"Film {number} was a {word}. I loved it. " * 3})
            for number, word in enumerate(("delight", "bore", "classic", "mess") * 15, start=100 * shard)
        ]
        (tmp_path / "data" / f"train-{shard}.jsonl").write_text("\n".join(lines))
    stories = [json.dumps({"text": f"A story {number}. " * 9}) for number in range(30)]
    (tmp_path / "data" / "test.jsonl").write_text("\n".join(stories))
    (tmp_path / "stream.toml").write_text(f"[model]\nname = {str(finished_run / 'model')!r}\n{SETTINGS}")
    return tmp_path


def train(folder: Path, *flags: str) -> int:
    with inside(folder):
        return train_main([*FLAGS, *flags])


def weights(run: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run / "model" / "model.safetensors")


@pytest.fixture
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run."""
    other = tmp_path_factory.mktemp("whole")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    assert train(other) == 0
    return other / "RUN"


def test_a_killed_run_resumes_with_equal_weights_and_evaluates_to_its_best_loss(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_STEP_12, *FLAGS], cwd=folder, env=environment)
    assert killed.returncode == -9
    saved = json.loads(json.loads((folder / "RUN/checkpoints/step-0000000012/state.json").read_text())["state"])
    # 12 steps of 8 sequences: in block 2 of 40, which starts after 80 rows of the first batch of documents.
    assert saved["stream"]["block"] == 2 and saved["stream"]["rows"] == 80
    assert train(folder) == 0
    capsys.readouterr()
    assert timeless(read_metrics(folder / "RUN")) == timeless(read_metrics(whole))
    resumed, expected = weights(folder / "RUN"), weights(whole)
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)

    events = read_metrics(whole)
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]
    assert [event["step"] for event in events if event["event"] == "epoch"] == [10, 20, 26]
    assert events[-1]["num_tokens"] == 26 * 8 * 32
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert "The training documents are read from 3 shards while training. 40 consecutive sequences" in card
    with inside(folder):
        assert main(["evaluate", "RUN", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == events[-1]["best_val_loss"]
    assert found["documents"].startswith("documents drawn from split test of ")
    with inside(folder):
        assert main(["evaluate", "RUN", "--dataset", "data/test.jsonl"]) == 0
        assert train_main(["--config", "stream.toml", "--plan"]) == 0
        assert main(["find-lr", "--config", "stream.toml", "--num-steps", "50"]) == 0


def test_a_run_continues_after_a_damaged_file_is_fixed(
    folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {path: path.read_text() for path in sorted((folder / "data").glob("train-*.jsonl"))}
    for path, text in texts.items():
        packed = gzip.compress(text.encode())
        (folder / "data" / f"{path.name}.gz").write_bytes(packed)
        path.unlink()
    damaged = folder / "data" / "train-1.jsonl.gz"
    intact = damaged.read_bytes()
    damaged.write_bytes(intact[: len(intact) // 2])
    assert train(folder, "--data.shuffle_buffer_size", "8") == 4
    message = capsys.readouterr().err.splitlines()[-1]
    assert "data/train-1.jsonl.gz: damaged or truncated gzip" in message
    assert message.endswith("; files already written are intact")
    damaged.write_bytes(intact)
    assert train(folder, "--data.shuffle_buffer_size", "8") == 0
    assert len([event for event in read_metrics(folder / "RUN") if event["event"] == "epoch"]) == 3


def test_settings_without_a_number_of_steps_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "--training.num_train_steps", "0") == 2
    assert capsys.readouterr().err == "error: data.streaming requires training.num_train_steps above 0\n"
    assert train(folder, "--data.shuffle_buffer_size", "7") == 2
    assert "data.shuffle_buffer_size must be at least training.batch_size: 7 < 8" in capsys.readouterr().err


def test_a_dataset_on_the_hub_is_streamed(folder: Path, finished_run: Path) -> None:
    dataset = folder / "hub"
    (dataset / "data").mkdir(parents=True)
    for name in ("train-0", "train-1", "test"):
        file = folder / "data" / f"{name}.jsonl"
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        part = f"-of-{'00001' if name == 'test' else '00002'}"
        name = f"{name.split('-')[0]}-{int(name.partition('-')[2] or 0):05}{part}.parquet"
        pq.write_table(pa.table({"text": texts, "label": [1] * len(texts)}), dataset / "data" / name)
    with serve({"datasets/owner/films": dataset}) as hub:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        finished = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *FLAGS, "--dataset", "owner/films"],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr
        assert sum("train-00000-of-00002.parquet" in request for request in hub.requests) > 0
    assert "training            2 shards, read while training" in finished.stdout
    assert not [path for path in (folder / "hf").rglob("*.parquet")]
