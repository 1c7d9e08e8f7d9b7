"""Compare training speed with other frameworks on this machine.

    pip install -c requirements.txt -e ".[bench]"
    python benchmarks/throughput.py [--model NAME_OR_DIR] [--dataset NAME_OR_PATH] [--rounds 3]

Every system trains DistilBERT with random weights on the same sequences of text, 32 x 128 tokens per step, with its
own masking and input pipeline. Each measurement is a separate process, because the systems need different versions of
Keras. Each round runs all systems, so that a change in the speed of the machine affects all of them. The table has the
median tokens/s over the timed steps of all rounds, the peak memory, and ratios. `matmul peak` is the speed of the
matrix products of a step alone (tf_mlm.model.matmul_peak).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import transformers

PEERS = Path(__file__).parent / "peers"
OURS = "tf_mlm"
PEAK = "matmul peak"
SYSTEMS = {
    OURS: ["ours.py", "--precision", "auto"],
    "tf_mlm, isolate_documents": ["ours.py", "--precision", "auto", "--isolate-documents"],
    "tf_mlm, float32": ["ours.py", "--precision", "float32"],
    "stock Keras, float32": ["stock_keras.py"],
    "stock Keras, bfloat16": ["stock_keras.py", "--precision", "bfloat16"],
    "KerasHub, float32": ["keras_hub_model.py"],
    "KerasHub, bfloat16": ["keras_hub_model.py", "--precision", "bfloat16"],
    "PyTorch, float32": ["pytorch.py"],
    "PyTorch, bfloat16": ["pytorch.py", "--precision", "bfloat16"],
    "PyTorch, bfloat16, compiled": ["pytorch.py", "--precision", "bfloat16", "--compile"],
    PEAK: ["matmul_peak.py"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert-base-uncased", help="Hub name or directory of the config")
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        for part in (transformers.AutoConfig, transformers.AutoTokenizer):
            part.from_pretrained(arguments.model).save_pretrained(model)
        sequences = Path(folder, "sequences.npy")
        options = ["--model", model, "--batch-size", arguments.batch_size, "--steps", arguments.steps]
        run_worker(["ours.py", "--dataset", arguments.dataset, "--write-sequences", sequences], options)
        results: dict[str, list[dict]] = {name: [] for name in arguments.systems}
        for _ in range(arguments.rounds):
            for name in arguments.systems:
                worker = SYSTEMS[name]
                data = ["--dataset", arguments.dataset] if worker[0] == "ours.py" else ["--sequences", sequences]
                results[name].append(run_worker(worker + data, options))
                print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
    print_table(results, arguments.batch_size)


def run_worker(worker: list, options: list) -> dict:
    command = [sys.executable, PEERS / worker[0], *worker[1:], *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, worker))} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def print_table(results: dict[str, list[dict]], batch_size: int) -> None:
    speed = {
        name: batch_size * 128 / median(second for run in runs for second in run["seconds"])
        for name, runs in results.items()
    }
    memory = {name: max(run["peak_bytes"] for run in runs) / 2**30 for name, runs in results.items()}
    print(f"{'':<29} {'tokens/s':>9} {'peak GiB':>9} {'tf_mlm / it':>12} {'it / peak':>10}")
    for name in results:
        ratio = f"{speed[OURS] / speed[name]:12.2f}" if OURS in speed else " " * 12
        share = f"{speed[name] / speed[PEAK]:10.2f}" if PEAK in speed else ""
        peak = f"{memory[name]:9.2f}" if name != PEAK else " " * 9
        print(f"{name:<29} {speed[name]:9,.0f} {peak} {ratio} {share}")
    stock = "stock Keras, float32"
    if OURS in memory and stock in memory:
        print(f"peak memory, tf_mlm / {stock}: {memory[OURS] / memory[stock]:.2f}")


if __name__ == "__main__":
    main()
