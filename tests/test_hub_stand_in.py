"""The default job with a Hub that is reachable, cached, unreachable or failing. Each test uses separate processes,
because the Hugging Face libraries read the address of the Hub on import."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from tests.hub_stand_in import serve

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATASET = "distilbert-base-uncased", "datasets/stanfordnlp/imdb"
SMALL = ["--epochs", "1", "--batch-size", "8", "--data.sequence_length", "16", "--data.num_train_sequences", "20"]


def environment(url: str, folder: Path, **others: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return kept | others | {
        "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


def run_train(url: str, folder: Path, *flags: str, **others: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "train.py"), *flags]
    return subprocess.run(
        command, cwd=folder, env=environment(url, folder, **others), capture_output=True, text=True, timeout=540
    )


@pytest.fixture
def small_model(finished_run: Path) -> Path:
    """A model as on the Hub: a safetensors file written by PyTorch."""
    with safetensors.safe_open(finished_run / "model" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    return finished_run / "model"


@pytest.fixture
def small_reviews(tmp_path: Path) -> Path:
    """A dataset as on the Hub: parquet files in a directory named after the configuration."""
    folder = tmp_path / "reviews"
    for split, verdict in (("train", "delight"), ("test", "bore")):
        texts = [f"The film of {number} scenes was a {verdict}.<br />So was the music." for number in range(30)]
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts, "label": [1] * 30}), path)
    return folder


def test_the_default_job_downloads_trains_exports_and_continues_from_the_cache(
    tmp_path: Path, small_model: Path, small_reviews: Path
) -> None:
    with serve({MODEL: small_model, DATASET: small_reviews}) as hub:
        result = run_train(hub.url, tmp_path, *SMALL, "--output-dir", "RUN")
        assert result.returncode == 0, result.stderr
        assert all(line.startswith(("step ", "epoch ")) for line in result.stderr.splitlines())
        for asked in (f"{MODEL}/resolve/main/model.safetensors", f"{MODEL}/resolve/main/tokenizer.json"):
            assert f"GET {asked}" in hub.requests
    run = tmp_path / "RUN"
    facts = json.loads((run / "environment.json").read_text())["data"]
    assert (facts["train_documents"], facts["validation_documents"], facts["held_out"]) == (30, 30, False)
    assert (run / "model" / "model.safetensors").exists() and (run / "saved_model" / "saved_model.pb").exists()

    # The server is stopped. Online and offline, the cached files are used, and the sample is not trained instead.
    for others in ({}, {"HF_HUB_OFFLINE": "1"}):
        result = run_train(hub.url, tmp_path, *SMALL, "--plan", **others)
        assert (result.returncode, result.stderr) == (0, "")
        assert "CANNOT BE REACHED" not in result.stdout and "30 documents" in result.stdout


LOAD = """
import os, sys
from tf_mlm import runtime
from tf_mlm.config import ModelConfig, TrainingConfig
from tf_mlm.errors import Refused
runtime.prepare(TrainingConfig())
from tf_mlm.model.loading import load_model
from tf_mlm.model.tokenizer import load_tokenizer
for name in sys.argv[1:]:
    config = ModelConfig(name=name)
    try:
        model, new_weights = load_model(config, load_tokenizer(config, ()), 8)
        print(name, len(new_weights), float(sum(abs(weight.numpy()).sum() for weight in model.weights)))
    except Refused as error:
        print(name, error)
"""


def test_sharded_weights_load_from_the_hub_and_other_files_are_refused(tmp_path: Path, small_model: Path) -> None:
    sharded = shutil.copytree(small_model, tmp_path / "sharded")
    arrays = safetensors.numpy.load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    weight_map = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(arrays)}
    for file in set(weight_map.values()):
        part = {name: array for name, array in arrays.items() if weight_map[name] == file}
        safetensors.numpy.save_file(part, sharded / file, metadata={"format": "pt"})
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    outside_index = shutil.copytree(sharded, tmp_path / "outside_index")
    outside = dict.fromkeys(weight_map, "../../elsewhere.safetensors")
    (outside_index / index.name).write_text(json.dumps({"metadata": {}, "weight_map": outside}))
    pickled = shutil.copytree(small_model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")

    names = ["someone/whole", "someone/sharded", "someone/outside_index", "someone/pickled"]
    folders = (small_model, sharded, outside_index, pickled)
    with serve(dict(zip(names, folders, strict=True))) as hub:
        result = subprocess.run(
            [sys.executable, "-c", LOAD, *names], env=environment(hub.url, tmp_path, PYTHONPATH=str(ROOT)),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    whole, in_parts, elsewhere, pickle = result.stdout.splitlines()
    assert whole.split()[1:] == in_parts.split()[1:] and whole.split()[1] == "0"
    assert "model.safetensors.index.json names '../../elsewhere.safetensors'" in elsewhere
    assert "pytorch_model.bin is a pickle, which is never loaded" in pickle
    assert not [request for request in hub.requests if "elsewhere" in request or "GET" in request and "bin" in request]


EACH_IN_TURN = """
import json, sys
from tf_mlm.commands.main import train_main
for arguments in json.loads(sys.argv[1]):
    print(train_main(arguments), file=sys.stderr)
"""


def test_an_error_of_the_hub_is_reported_with_the_requested_name(
    tmp_path: Path, small_model: Path, small_reviews: Path
) -> None:
    damaged = shutil.copytree(small_model, tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    commands = [
        ["--dataset", "someone/nothing", "--model", "someone/whole"],
        ["--dataset", "someone/private", "--model", "someone/whole"],
        ["--model", "someone/nothing"],
        ["--model", "someone/private"],
        ["--model", "someone/damaged"],
        [],  # includes the bare default: an error of the Hub is not a reason to train the sample
    ]
    refuse_each_in_turn(
        commands,
        tmp_path,
        {"someone/damaged": damaged, "someone/whole": small_model, DATASET: small_reviews},
        error=401,
    )


@pytest.mark.slow
def test_a_failing_hub_is_retried_silently_and_then_reported(
    tmp_path: Path, small_model: Path, small_reviews: Path
) -> None:
    commands = [["--dataset", "someone/private", "--model", "someone/whole"], ["--model", "someone/private"]]
    refuse_each_in_turn(commands, tmp_path, {"someone/whole": small_model, DATASET: small_reviews}, error=500)


def refuse_each_in_turn(commands: list[list[str]], folder: Path, repositories: dict[str, Path], error: int) -> None:
    """Each of `commands` prints one line with the requested name and exits with code 2."""
    with serve(repositories, {"someone/private": error, "datasets/someone/private": error}) as hub:
        result = subprocess.run(
            [sys.executable, "-c", EACH_IN_TURN, json.dumps(commands)],
            cwd=folder, env=environment(hub.url, folder, PYTHONPATH=str(ROOT)), capture_output=True, text=True,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 2 * len(commands), result.stderr  # one line per error, and the exit code printed by the script
    for command, line, code in zip(commands, lines[::2], lines[1::2], strict=True):
        assert code == "2"
        setting = "data.dataset" if "--dataset" in command else "model.name"
        asked = f"{setting} = '{command[1] if command else MODEL}'"
        assert line.startswith(f"error: {asked}") and hub.url in line
    assert result.stdout == ""  # no banner, no plan
    assert not list((folder / "runs").glob("*"))


@pytest.mark.slow
def test_a_hub_without_an_answer_ends_the_wait_within_15_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and sends nothing
        start = time.monotonic()
        result = run_train(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, "--model", "someone/model")
        seconds = time.monotonic() - start
    importing = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tf_keras, transformers, datasets"], check=True, capture_output=True)
    assert result.returncode == 2 and "no connection" in result.stderr
    assert seconds < 15 + 2 * (time.monotonic() - importing)


@pytest.mark.slow
def test_the_real_config_tokenizer_and_reviews_download_train_and_export(tmp_path: Path, shared: Path) -> None:
    """The 66,985,530 weights are random, with the file format and the names of the Hub."""
    folder = Path(shutil.copytree(shared / "models" / "distilbert-base-uncased-config", tmp_path / "model"))
    script = """
import sys
from pathlib import Path
from tf_mlm import runtime
from tf_mlm.config import ModelConfig, TrainingConfig
runtime.prepare(TrainingConfig())
from tf_mlm.model.loading import load_model
from tf_mlm.model.saving import save_model
from tf_mlm.model.tokenizer import load_tokenizer
config = ModelConfig(name=sys.argv[1], from_config=True)
tokenizer = load_tokenizer(config, ())
save_model(load_model(config, tokenizer, 128)[0], tokenizer, Path(sys.argv[1]))
"""
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=ROOT)
    with serve({MODEL: folder, DATASET: shared / "data" / "imdb"}) as hub:
        flags = ["--training.num_train_steps", "2", "--batch-size", "4", "--data.num_validation_sequences", "8"]
        result = run_train(hub.url, tmp_path, *flags, "--output-dir", "RUN")
    assert result.returncode == 0, result.stderr
    environment_facts = json.loads((tmp_path / "RUN" / "environment.json").read_text())
    assert environment_facts["num_parameters"] == 66_985_530
    assert environment_facts["new_weights"] == []
    assert (tmp_path / "RUN" / "saved_model" / "saved_model.pb").exists()
