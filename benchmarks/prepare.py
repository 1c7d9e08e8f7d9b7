"""Measure speed and memory of tokenizing and packing, compared with `tokenizers` alone.

    python benchmarks/prepare.py [--model NAME_OR_DIR] [--dataset NAME_OR_PATH]

The peer encodes the same texts (all splits of the dataset) in the same batches and discards the result. tf_mlm also
reads them from disk, packs them and writes them to its cache. Memory is measured in a separate process, for a tenth of
the documents and for all: `anonymous` is the memory of the process itself, `peak` includes pages of memory-mapped
files, which the operating system can reclaim.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert-base-uncased", help="Hub name or directory of the tokenizer")
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--worker", choices=("ours", "tokenizers", "corpus"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "corpus":
        return write_corpus(arguments)
    if arguments.worker:
        return prepare(arguments)

    def run(worker: str, folder: str) -> dict:
        command = [sys.executable, *sys.argv, "--worker", worker, "--folder", folder]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return json.loads(output.splitlines()[-1]) if output else {}

    with tempfile.TemporaryDirectory() as folder:
        run("corpus", folder)
        rounds = [(run("ours", f"{folder}/all"), run("tokenizers", f"{folder}/all")) for _ in range(ROUNDS)]
        ours, peer = (median(round[i]["seconds"] for round in rounds) for i in (0, 1))
        share = median(theirs["seconds"] / mine["seconds"] for mine, theirs in rounds)
        whole, tokens = rounds[0][0], rounds[0][0]["tokens"]
        print(f"{whole['documents']:,} documents, {tokens:,} tokens")
        print(f"tf_mlm           {tokens / ours:>12,.0f} tokens/s")
        print(f"tokenizers alone {tokens / peer:>12,.0f} tokens/s; tf_mlm reaches {share:.0%} of that")
        print(f"second start     {whole['again']:>12.2f} s, from the cache")
        for result in (run("ours", f"{folder}/tenth"), whole):
            anonymous, peak = (f"{result[name] / 2**20:,.0f} MiB" for name in ("anonymous", "peak"))
            print(f"{result['documents']:,} documents: memory {anonymous} anonymous, {peak} at the peak")


def write_corpus(arguments: argparse.Namespace) -> None:
    """Write the texts of the dataset to arrow files: all of them, and every tenth."""
    import datasets

    splits = datasets.load_dataset(arguments.dataset)
    texts = datasets.concatenate_datasets([split.select_columns("text") for split in splits.values()])
    texts.save_to_disk(arguments.folder / "all")
    texts.select(range(0, len(texts), 10)).save_to_disk(arguments.folder / "tenth")


def prepare(arguments: argparse.Namespace) -> None:
    import datasets
    import transformers

    from tf_mlm.config import DataConfig
    from tf_mlm.data.sequences import load_sequences, unigram_counts

    documents = datasets.load_from_disk(arguments.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    if arguments.worker == "tokenizers":
        texts = documents["text"][:]
        backend = tokenizer.backend_tokenizer
        start = time.perf_counter()
        for first in range(0, len(texts), 1000):
            backend.encode_batch_fast(texts[first : first + 1000])
        print(json.dumps({"seconds": time.perf_counter() - start}))
        return
    with tempfile.TemporaryDirectory() as cache, PeakMemory() as memory:
        datasets.config.HF_DATASETS_CACHE = cache
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            sequences = load_sequences(documents, "benchmark", tokenizer, DataConfig(), "training")
            seconds.append(time.perf_counter() - start)
        unigram_counts(sequences, len(tokenizer))
    facts = {"documents": sequences.num_documents, "tokens": sequences.num_tokens}
    print(json.dumps({"seconds": seconds[0], "again": seconds[1], **facts, **memory.bytes()}))


class PeakMemory(threading.Thread):
    """Samples the memory of this process from `/proc/self/status` (Linux only)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._anonymous = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            self._anonymous = max(self._anonymous, self._status("RssAnon"))

    def __enter__(self) -> "PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def bytes(self) -> dict[str, int]:
        return {"anonymous": self._anonymous, "peak": self._status("VmHWM")}

    def _status(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
