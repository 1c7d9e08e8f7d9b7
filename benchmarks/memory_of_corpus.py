"""Measure how peak memory grows with the corpus: `tf-mlm prepare`, and the data pipeline of training.

    python benchmarks/memory_of_corpus.py [--documents 1000] [--times 1 10 100] [--model NAME_OR_DIR]

The corpus has N documents of the dataset, repeated 1, 10 and 100 times; one word of each copy is changed, so that no
two documents are equal. `prepare` runs with one worker process, which is measured too. The data pipeline of training
sets up a run with 20 epochs over all sequences and reads 300 masked batches, without a model. `stream` reads the text
with `data.streaming`, two sequences for each document, shuffled 10,000 at a time, without a model. `anonymous` is the
memory of the process itself. `resident` includes pages of memory-mapped files, which the operating system can reclaim
(Linux only). A process that imports the same libraries and reads nothing is the baseline.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

NUM_BATCHES, EPOCHS = 300, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--model", default="distilbert-base-uncased", help="Hub name or directory of the tokenizer")
    parser.add_argument("--documents", type=int, default=1000, help="documents of the smallest corpus")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument(
        "--measure", choices=("corpus", "nothing", "prepare", "stream", "train"), help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--copies", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return globals()[f"measure_{arguments.measure}"](arguments)

    def run(measure: str, folder: Path, copies: int = 1) -> dict:
        command = [sys.executable, *sys.argv, "--measure", measure, "--folder", folder, "--copies", copies]
        environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])

    print(f"{'':31}MiB, anonymous / resident")
    names = "".join(f"{name:>16}" for name in ("prepare", "its worker", "training", "stream"))
    print(f"{'documents':>11}{'text, MiB':>10}{'sequences':>10}{names}")
    for copies in arguments.times:
        with tempfile.TemporaryDirectory() as folder:
            size = run("corpus", Path(folder), copies)
            prepared, trained = run("prepare", Path(folder)), run("train", Path(folder))
            streamed = run("stream", Path(folder), copies)
            row = f"{size['documents']:>11,}{size['bytes'] / 2**20:>10,.0f}{trained['sequences']:>10,}"
            for peak in (prepared["own"], prepared["worker"], trained["own"], streamed["own"]):
                row += f"{peak['anonymous'] / 2**20:>9,.0f} /{peak['resident'] / 2**20:>5,.0f}"
            print(row, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = run("nothing", Path(folder))
    for name in ("data libraries", "data libraries and TensorFlow"):
        anonymous, resident = (f"{found[name][kind] / 2**20:,.0f} MiB" for kind in ("anonymous", "resident"))
        print(f"{name} alone: {anonymous} anonymous, {resident} resident")


def measure_corpus(arguments: argparse.Namespace) -> None:
    """Write the documents to a file, `copies` times with one changed word."""
    import datasets

    texts = datasets.load_dataset(arguments.dataset, split="train").select(range(arguments.documents))["text"][:]
    path = arguments.folder / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for copy in range(arguments.copies):
            for text in texts:
                words = text.split(" ")
                words[copy % len(words)] = f"copy{copy}"
                file.write(json.dumps({"text": " ".join(words)}) + "\n")
    print(json.dumps({"documents": arguments.copies * len(texts), "bytes": path.stat().st_size}))


def settings(arguments: argparse.Namespace, dataset: str) -> dict:
    return {
        "data.dataset": str(arguments.folder / dataset),
        "model.name": arguments.model,
        "data.num_train_sequences": 0,
        "data.num_validation_sequences": 0,
        "training.epochs": EPOCHS,
    }


def measure_prepare(arguments: argparse.Namespace) -> None:
    from tf_mlm.config import load_config
    from tf_mlm.runtime import set_environment

    set_environment()
    from tf_mlm.training.preparation import prepare
    from tf_mlm.worker_processes import map_unordered

    config = load_config(None, settings(arguments, "corpus.jsonl"))
    with PeakMemory() as memory:
        prepare(
            config,
            arguments.folder / "prepared",
            {},
            documents_per_shard=10_000,
            run_tasks=partial(map_unordered, num_workers=1),
        )
    print(json.dumps({"own": memory.own, "worker": memory.worker}))


def measure_train(arguments: argparse.Namespace) -> None:
    from tf_mlm.config import load_config
    from tf_mlm.runtime import prepare

    config = load_config(None, settings(arguments, "prepared"))
    prepare(config.training)
    from tf_mlm.training.objectives.table import OBJECTIVES

    with PeakMemory() as memory:
        objective = OBJECTIVES["masked"]
        shards = objective.load_documents(config)
        tokenizer = objective.load_tokenizer(config, shards)
        data = objective.prepare(config, shards, tokenizer)
        data.count_tokens(config, 0, EPOCHS * len(data.train_rows) // config.training.batch_size)
        for _ in data.train_dataset(config, tokenizer, EPOCHS).take(NUM_BATCHES):
            pass
    print(json.dumps({"own": memory.own, "sequences": len(data.train_rows)}))


def measure_stream(arguments: argparse.Namespace) -> None:
    from tf_mlm.config import load_config
    from tf_mlm.runtime import prepare

    num_batches = 2 * arguments.documents * arguments.copies // 32
    config = load_config(
        None,
        settings(arguments, "corpus.jsonl")
        | {
            "data.streaming": True,
            "data.num_validation_sequences": 100,
            "training.num_train_steps": num_batches,
            "training.validate_every_steps": num_batches,
        },
    )
    prepare(config.training)
    from tf_mlm.training.objectives.table import OBJECTIVES

    with PeakMemory() as memory:
        objective = OBJECTIVES["masked"]
        stream = objective.load_documents(config)
        tokenizer = objective.load_tokenizer(config, stream)
        data = objective.prepare(config, stream, tokenizer)
        for _ in data.train_dataset(config, tokenizer, epochs=1).take(num_batches):
            pass
    print(json.dumps({"own": memory.own}))


def measure_nothing(arguments: argparse.Namespace) -> None:
    found = {}
    with PeakMemory() as memory:
        import tf_mlm.training.preparation  # noqa: F401
    found["data libraries"] = memory.own
    with PeakMemory() as memory:
        from tf_mlm.config import TrainingConfig
        from tf_mlm.runtime import prepare

        prepare(TrainingConfig())
    found["data libraries and TensorFlow"] = memory.own
    print(json.dumps(found))


class PeakMemory(threading.Thread):
    """Samples the memory of this process and of its largest worker process from `/proc` (Linux only)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = {"anonymous": 0, "resident": 0}
        self.worker = dict(self.own)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self._sample()

    def _sample(self) -> None:
        _update(self.own, os.getpid())
        for process in multiprocessing.active_children():
            _update(self.worker, process.pid)

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
        self._sample()


def _update(peak: dict[str, int], process: int | None) -> None:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return  # the process has ended
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    for name, field in (("anonymous", "RssAnon"), ("resident", "VmRSS")):
        peak[name] = max(peak[name], int(values.get(field, 0)) * 1024)


if __name__ == "__main__":
    main()
