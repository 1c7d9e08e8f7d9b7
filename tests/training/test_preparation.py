"""`tf-mlm prepare` gives the same bits for any number of workers, after a kill, and in training."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_run
from tests.commands.test_main import refusal
from tests.conftest import ROOT
from tf_mlm.commands.main import main, train_main
from tf_mlm.config import DataConfig, load_config
from tf_mlm.data.shards import Shards, find_shards

Capture = pytest.CaptureFixture[str]
TINY = ("--config", "tiny.toml")


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(tiny_run.TINY)
    return tmp_path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in 9 shards of 500 documents, of which 8 have training documents. Read-only."""
    folder = tmp_path_factory.mktemp("prepared")
    with tiny_run.inside(folder):
        Path("tiny.toml").write_text(tiny_run.TINY)
        assert prepare("DIR", "--documents-per-shard", "500") == 0
    return folder / "DIR"


def prepare(output: str, *flags: str) -> int:
    return main(["prepare", *TINY, "--output", output, "--num-workers", "2", *flags])


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files, without the lock file and the flags of the command."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    record = json.loads(found["prepared.json"])
    del record["flags"]
    return found | {"prepared.json": json.dumps(record).encode()}


def shards_of(folder: str | Path) -> Shards:
    shards = find_shards(DataConfig(dataset=str(folder), sequence_length=32))
    assert shards is not None
    return shards


def start(*flags: str, output: str = "DIR") -> "subprocess.Popen[str]":
    """Begin a preparation in a separate process group, and wait until it has written two shards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tf_mlm", "prepare", *TINY, "--output", output, "--num-workers", "2", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while len(list(Path(output).glob("train/shard-*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


# The shards


def test_one_shard_has_the_files_of_the_cache_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from tf_mlm.data.corpus import load_corpus
    from tf_mlm.data.prepared import prepare_data
    from tf_mlm.model.tokenizer import load_tokenizer

    assert prepare("DIR") == 0
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = load_config(Path("tiny.toml"))
    corpus = load_corpus(config.data, config.training.seed)
    plain = prepare_data(config, corpus, load_tokenizer(config.model, corpus.train["text"]))
    cached, shards_found = (
        {tuple(path.read_bytes() for path in sorted(folder.iterdir())) for folder in folders}
        for folders in ((tmp_path / "cache/tf_mlm").glob("sequences-*/"), Path("DIR").glob("*/shard-00000"))
    )
    assert len(cached) == 2 and cached == shards_found
    shards = shards_of("DIR")
    assert shards.held_out == corpus.held_out is True and shards.num_overlap == corpus.num_overlap
    np.testing.assert_array_equal(shards.train_hashes, corpus.train_hashes)
    again = prepare_data(config, shards, load_tokenizer(config.model, corpus.train["text"]))
    np.testing.assert_array_equal(again.train_rows, plain.train_rows)
    different = {"fingerprint", "prepared_from", "dropped_repeated"}
    assert {name: again.facts[name] for name in again.facts.keys() - different} == {
        name: plain.facts[name] for name in plain.facts.keys() - different
    }
    assert again.unigram_entropy == plain.unigram_entropy


def test_the_bits_do_not_depend_on_the_number_of_workers(prepared: Path) -> None:
    assert main(["prepare", *TINY, "--output", "ONE", "--num-workers", "1", "--documents-per-shard", "500"]) == 0
    assert files(Path("ONE")) == files(prepared)
    record = json.loads((prepared / "prepared.json").read_text())
    assert [len(record["shards"][split]) for split in ("train", "validation")] == [8, 1]
    assert len({shard["digest"] for shard in record["shards"]["train"]}) == 8


def test_the_shards_have_the_tokens_of_the_documents_in_order(prepared: Path) -> None:
    """Each shard ends with padding; without the padding, the tokens are those of one shard."""
    assert prepare("DIR") == 0

    def tokens(sequences: Any) -> list[int]:
        ids, lengths = sequences.input_ids[:], sequences.lengths[:]
        return ids[np.arange(ids.shape[1]) < lengths[:, None]].tolist()

    for split in ("train", "validation"):
        many, one = shards_of(prepared).load(split), shards_of("DIR").load(split)
        assert tokens(many) == tokens(one)
        assert (many.num_documents, many.num_empty, many.num_tokens) == (
            one.num_documents, one.num_empty, one.num_tokens,
        )  # fmt: skip
        np.testing.assert_array_equal(shards_of(prepared).unigram_counts(split), shards_of("DIR").unigram_counts(split))
    assert len(shards_of(prepared).load("train").lengths) > len(shards_of("DIR").load("train").lengths)


def test_preparing_does_not_import_tensorflow_in_any_process() -> None:
    script = """
import sys
from tf_mlm.commands.main import main
if __name__ == "__main__":
    assert main(["prepare", "--config", "tiny.toml", "--output", "DIR", "--num-workers", "1"]) == 0
assert "tensorflow" not in sys.modules
"""
    Path("script.py").write_text(script + "import tf_mlm.training.preparation\n" + script.splitlines()[-1])
    result = subprocess.run(
        [sys.executable, "script.py"], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert Path("DIR/prepared.json").exists()


# A Dask cluster


def test_a_dask_cluster_writes_the_same_files(prepared: Path) -> None:
    """A scheduler and two workers in separate processes, as on several machines with one file system."""
    pytest.importorskip("distributed")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1"]
    commands = [[*scheduler, "--no-dashboard"], *[[*worker, "--no-dashboard", "--no-nanny"]] * 2]
    processes = [subprocess.Popen(each, env=environment, stderr=subprocess.DEVNULL) for each in commands]
    try:
        flags = ["--documents-per-shard", "500", "--engine", "dask", "--scheduler", f"tcp://127.0.0.1:{port}"]
        command = [sys.executable, "-m", "tf_mlm", "prepare", *TINY, "--output", "DIR", *flags]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    assert (result.returncode, result.stderr) == (0, "")
    assert files(Path("DIR")) == files(prepared)


def test_a_scheduler_that_does_not_answer_is_refused(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from tf_mlm import dask_cluster

    monkeypatch.setattr(dask_cluster, "_CONNECT_SECONDS", 0.5)
    flags = ("--engine", "dask", "--scheduler", "tcp://127.0.0.1:9")
    line = refusal(capsys, main, "prepare", *TINY, "--output", "DIR", *flags)
    assert line.startswith("error: --scheduler tcp://127.0.0.1:9: cannot be reached: ")
    assert line.endswith("; pass the address of a running Dask scheduler")


# Duplicates


def write_repeated_reviews() -> None:
    """60 reviews of 40 words. Every sixth repeats the first one: with one changed word, in capitals, or unchanged."""
    random = np.random.default_rng(0)
    lines: list[str] = []
    for number in range(60):
        words = [f"word{word}" for word in random.integers(0, 300, 40)]
        if number and number % 6 == 0:
            words = [*lines[0].split(), f"end{number}"] if number % 18 == 0 else lines[0].upper().split()
        lines.append(" ".join(words))
    Path("reviews.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("method, expected", [("exact", 6), ("near", 9)])
def test_duplicates_are_dropped_for_any_number_of_workers(method: str, expected: int, capsys: Capture) -> None:
    """Reviews 6, 12, …, 54 repeat review 0; exactly, except for 18, 36 and 54."""
    if method == "near":
        pytest.importorskip("datasketch")
    write_repeated_reviews()
    flags = ("--dataset", "reviews.txt", "--documents-per-shard", "16", "--data.validation_fraction", "0.3")
    assert prepare("NONE", *flags) == 0
    assert prepare("DIR", *flags, "--deduplicate", method) == 0
    assert prepare("ONE", *flags, "--deduplicate", method, "--num-workers", "1") == 0
    assert files(Path("DIR")) == files(Path("ONE"))
    shards = shards_of("DIR")
    assert sum(shards.num_repeated.values()) + shards_of("NONE").num_overlap == expected
    assert f" training documents that {'nearly ' * (method == 'near')}repeat an earlier one" in capsys.readouterr().out
    for split in ("train", "validation"):
        kept, all_documents = shards.load(split), shards_of("NONE").load(split)
        assert kept.num_documents == all_documents.num_documents - shards.num_repeated[split]
    assert len(shards.train_hashes) == shards.load("train").num_documents
    assert not Path("DIR/signatures").exists()


# Interruptions


def test_a_killed_preparation_continues_to_the_same_files(prepared: Path) -> None:
    process = start("--documents-per-shard", "500")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not Path("DIR/prepared.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in Path("DIR/train").glob("shard-*/*")}
    assert 2 <= len(kept) // 3 < 8
    assert prepare("DIR", "--documents-per-shard", "500") == 0
    assert files(Path("DIR")) == files(prepared)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not written again


def test_the_workers_of_a_killed_preparation_end_and_their_temporary_directories_are_removed(prepared: Path) -> None:
    import psutil

    process = start("--documents-per-shard", "500")
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    leftover = Path("DIR/train/.shard-00007.x1y2.tmp")
    leftover.mkdir()
    assert prepare("DIR", "--documents-per-shard", "500") == 0
    assert not leftover.exists() and files(Path("DIR")) == files(prepared)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_workers_and_the_same_command_continues(prepared: Path, number: signal.Signals) -> None:
    process = start("--documents-per-shard", "500")
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == f"{number.name}: stopped, and the finished shards are kept; repeat the command to continue\n"
    assert list(Path("DIR").glob("*/.*")) == []
    assert prepare("DIR", "--documents-per-shard", "500") == 0
    assert files(Path("DIR")) == files(prepared)


def test_a_killed_worker_ends_the_command_with_an_error(prepared: Path) -> None:
    import psutil

    process = start("--documents-per-shard", "500")
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4 and errors.startswith("error: I/O error: a worker process was killed")
    assert prepare("DIR", "--documents-per-shard", "500") == 0
    assert files(Path("DIR")) == files(prepared)


def test_a_damaged_shard_of_an_unfinished_preparation_is_written_again(prepared: Path) -> None:
    shutil.copytree(prepared, "DIR")
    Path("DIR/prepared.json").rename("DIR/started.json")
    os.truncate("DIR/train/shard-00001/lengths.bin", 40)
    Path("DIR/train/shard-00002/facts.json").unlink()
    shutil.rmtree("DIR/validation/shard-00000")
    assert prepare("DIR", "--documents-per-shard", "500") == 0
    assert files(Path("DIR")) == files(prepared)


def test_a_finished_preparation_is_not_repeated(prepared: Path, capsys: Capture) -> None:
    shutil.copytree(prepared, "DIR")
    before = {path: path.stat().st_mtime_ns for path in Path("DIR").rglob("*") if path.name != ".lock"}
    assert prepare("DIR", "--documents-per-shard", "500") == 0
    assert capsys.readouterr().out.startswith("DIR is already prepared; nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before


# Training


def test_training_on_one_shard_gives_the_numbers_of_training_on_the_dataset(
    finished_run: Path, capsys: Capture
) -> None:
    assert prepare("DIR") == 0
    assert train_main([*TINY, "--dataset", "DIR", "--output-dir", "RUN"]) == 0
    found = tiny_run.timeless(tiny_run.read_metrics(Path("RUN")))
    assert found == tiny_run.timeless(tiny_run.read_metrics(finished_run))
    assert main(["evaluate", "RUN", "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluation["loss"] == pytest.approx(min(e["val_loss"] for e in found if "val_loss" in e), rel=1e-6)
    assert evaluation["num_in_training"] == 0
    weights = "model/model.safetensors"
    assert Path("RUN", weights).read_bytes() == (finished_run / weights).read_bytes()


def test_a_run_on_shards_resumes_evaluates_and_names_the_text_in_its_card(
    prepared: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf_mlm.training.callbacks.metrics_log import MetricsLog

    flags = [*TINY, "--dataset", str(prepared), "--epochs", "1"]
    assert train_main([*flags, "--output-dir", "WHOLE"]) == 0
    on_train_batch_end = MetricsLog.on_train_batch_end

    def interrupt(self: MetricsLog, batch: int, logs: Any = None) -> None:
        on_train_batch_end(self, batch, logs)
        if batch == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "on_train_batch_end", interrupt)
        assert train_main([*flags, "--output-dir", "RUN"]) == 143
    assert train_main([*flags, "--output-dir", "RUN", "--resume"]) == 0
    events = tiny_run.timeless(tiny_run.read_metrics(Path("RUN")))
    assert events == tiny_run.timeless(tiny_run.read_metrics(Path("WHOLE")))
    assert "the built-in sample corpus of tf_mlm" in Path("RUN/README.md").read_text()
    capsys.readouterr()
    assert main(["evaluate", "RUN", "--dataset", str(prepared), "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    assert evaluation["loss"] == pytest.approx(min(e["val_loss"] for e in events if "val_loss" in e), rel=1e-6)


# Refusals


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--data.sequence_length", "64"), "data.sequence_length = 64: {path} was prepared with 32; pass "
         "--data.sequence_length 32, or prepare again: tf-mlm prepare --config tiny.toml --documents-per-shard 500 "
         "--data.sequence_length 64 --output {other}"),
        (("--data.line_by_line", "true"), "data.line_by_line = True: {path} was prepared with False; pass "
         "--data.line_by_line false, or prepare again: tf-mlm prepare --config tiny.toml --documents-per-shard 500 "
         "--data.line_by_line true --output {other}"),
        (("--data.text_column", "review"), "data.text_column = 'review': {path} was prepared with ''; pass "
         "--data.text_column '', or prepare again: tf-mlm prepare --config tiny.toml --documents-per-shard 500 "
         "--data.text_column review --output {other}"),
        (("--model.vocab_size", "200"), "model.vocab_size = 200: {path} was prepared with 300; pass "
         "--model.vocab_size 300, or prepare again: tf-mlm prepare --config tiny.toml --documents-per-shard 500 "
         "--model.vocab_size 200 --output {other}"),
    ],
    ids=["sequence_length", "line_by_line", "text_column", "vocab_size"],
)  # fmt: skip
def test_training_with_other_settings_is_refused(
    prepared: Path, capsys: Capture, flags: tuple[str, ...], expected: str
) -> None:
    line = refusal(capsys, train_main, *TINY, "--dataset", prepared, "--output-dir", "RUN", *flags)
    assert line == "error: " + expected.format(path=repr(str(prepared)), other=f"{prepared}-2")


def test_training_with_another_tokenizer_is_refused(prepared: Path, capsys: Capture, finished_run: Path) -> None:
    shutil.copytree(finished_run / "model", "MODEL")
    vocabulary = json.loads(Path("MODEL/tokenizer.json").read_text())
    vocabulary["normalizer"]["lowercase"] = False
    Path("MODEL/tokenizer.json").write_text(json.dumps(vocabulary))
    Path("MODEL/tokenizer_config.json").write_text(
        Path("MODEL/tokenizer_config.json").read_text().replace('"do_lower_case": true', '"do_lower_case": false')
    )
    flags = ("--dataset", prepared, "--output-dir", "RUN")
    line = refusal(capsys, train_main, *TINY, *flags, "--model", "MODEL")
    assert line == (
        f"error: model.name = 'MODEL': {str(prepared)!r} was prepared with another tokenizer, that of a new model; "
        "pass --model '', or prepare again: tf-mlm prepare --config tiny.toml --documents-per-shard 500 --model MODEL "
        f"--output {prepared}-2"
    )


def test_an_incomplete_preparation_is_refused_with_the_command_that_continues_it(
    prepared: Path, capsys: Capture
) -> None:
    shutil.copytree(prepared, "DIR")
    Path("DIR/prepared.json").rename("DIR/started.json")
    line = refusal(capsys, train_main, *TINY, "--dataset", "DIR", "--output-dir", "RUN")
    assert line == (
        "error: data.dataset = 'DIR': its preparation is incomplete; continue it with: tf-mlm prepare --config "
        "tiny.toml --documents-per-shard 500 --output DIR"
    )


def test_a_missing_shard_is_refused(prepared: Path, capsys: Capture) -> None:
    shutil.copytree(prepared, "DIR")
    shutil.rmtree("DIR/train/shard-00003")
    line = refusal(capsys, train_main, *TINY, "--dataset", "DIR", "--output-dir", "RUN")
    assert line.startswith("error: data.dataset = 'DIR': train/shard-00003 is missing or damaged; remove prepared.json")


def test_a_command_that_needs_texts_refuses_a_prepared_directory(
    prepared: Path, finished_run: Path, capsys: Capture
) -> None:
    line = refusal(capsys, main, "finetune", finished_run, "--task", "classification", "--dataset", prepared)
    assert "contains token ids, not texts" in line


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--num-workers", "0"), "error: --num-workers 0: must be at least 1"),
        (("--data.streaming", "--dataset", "a/b"), "error: data.streaming = true: prepare reads the whole dataset; "
         "omit data.streaming"),
        (("--scheduler", "tcp://host:8786"), "error: --scheduler: has no effect without --engine dask; omit it"),
        (("--duplicate-threshold", "0.5"), "error: --duplicate-threshold: has no effect without --deduplicate near; "
         "omit it"),
        (("--deduplicate", "near", "--duplicate-threshold", "1"), "error: --duplicate-threshold 1: must be at least "
         "0.1 and at most 0.99"),
        (("--dataset", "missing.txt"), "error: data.dataset: missing.txt: no such file or directory, or no permission "
         "to read it; check the path"),
        (("--output", "tiny.toml"), "error: --output tiny.toml: is a file; pass a directory"),
        (("--output", "."), "error: --output .: is not empty (it contains tiny.toml); choose a new directory"),
    ],
    ids=["num-workers", "streaming", "no dask", "no near", "threshold", "missing", "file", "not empty"],
)  # fmt: skip
def test_a_wrong_request_is_refused_and_leaves_nothing(capsys: Capture, flags: tuple[str, ...], expected: str) -> None:
    assert refusal(capsys, main, "prepare", *TINY, "--output", "DIR", *flags) == expected


@pytest.mark.parametrize(
    "flags, expected",
    [
        (("--data.sequence_length", "64"), "with --data.sequence_length 32, not 64; pass the same value, or "),
        (("--documents-per-shard", "7"), "with --documents-per-shard 500, not 7; pass the same value, or "),
        (("--deduplicate", "exact"), "with --deduplicate none, not exact; pass the same value, or "),
        (("--model.vocab_size", "200"), "with another tokenizer; "),
        (("--seed", "8", "--model", "{model}"), "from other documents; "),
    ],
    ids=["sequence_length", "documents-per-shard", "deduplicate", "tokenizer", "documents"],
)  # fmt: skip
def test_preparing_with_other_settings_into_the_same_directory_is_refused(
    prepared: Path, capsys: Capture, flags: tuple[str, ...], expected: str
) -> None:
    shutil.copytree(prepared, "DIR")
    flags = tuple(flag.format(model=prepared / "tokenizer") for flag in flags)
    line = refusal(capsys, main, "prepare", *TINY, "--output", "DIR", "--documents-per-shard", "500", *flags)
    assert line == f"error: --output DIR: was prepared {expected}choose a new directory"


def test_a_disk_that_is_too_small_is_refused(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from tf_mlm.training import preparation

    monkeypatch.setattr(preparation, "free_bytes", lambda path: 500_000)
    line = refusal(capsys, main, "prepare", *TINY, "--output", "DIR")
    estimate = float(line.split("the shards need about ")[1].split(" MiB more")[0]) * 2**20
    assert line.endswith("and 0.5 MiB are available; free disk space, or choose a directory on another disk")
    monkeypatch.setattr(preparation, "free_bytes", lambda path: 2**40)
    assert prepare("DIR") == 0
    written = sum(path.stat().st_size for path in Path("DIR").glob("*/shard-*/*.bin"))
    assert estimate == pytest.approx(written, rel=0.1)


def test_two_preparations_of_one_directory_are_refused(prepared: Path, capsys: Capture) -> None:
    import filelock

    shutil.copytree(prepared, "DIR")
    with filelock.FileLock("DIR/.lock"):
        line = refusal(capsys, main, "prepare", *TINY, "--output", "DIR", "--documents-per-shard", "500")
    assert line == "error: --output DIR: another process is preparing it; wait for it or stop it"
