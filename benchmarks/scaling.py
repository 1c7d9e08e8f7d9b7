"""Measure tokens/s and peak memory by batch size, sequence length, threads and model.

    python benchmarks/scaling.py --models NAME_OR_DIR [NAME_OR_DIR ...] [--dataset NAME_OR_PATH]

tf_mlm runs with its defaults and random weights. One quantity varies at a time around 32 x 128 on all cores; `--grid`
measures every combination. Each measurement is a separate process.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

OURS = Path(__file__).parent / "peers" / "ours.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["distilbert-base-uncased"])
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--accumulate-steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=3, help="timed steps per measurement")
    parser.add_argument("--grid", action="store_true", help="measure every combination")
    arguments = parser.parse_args()
    axes = [arguments.batch_sizes, arguments.lengths, arguments.threads, arguments.accumulate_steps]
    center = (32, 128, max(arguments.threads), 1)
    if arguments.grid:
        cases = set(itertools.product(*axes))
    else:
        cases = {(*center[:i], value, *center[i + 1 :]) for i, axis in enumerate(axes) for value in axis}
    header = ["model", "batch", "length", "threads", "parts"]
    print("| " + " | ".join([*header, "tokens/s", "tokens/s per thread", "peak GiB"]) + " |")
    print("|---" + "|---:" * 7 + "|")
    for model, case in itertools.product(arguments.models, sorted(cases)):
        result = measure(model, arguments, *case)
        speed = case[0] * case[1] / median(result["seconds"])
        name = f"{result['parameters'] / 1e6:.0f} M parameters"
        figures = f"{speed:,.0f} | {speed / case[2]:,.0f} | {result['peak_bytes'] / 2**30:.2f}"
        print(f"| {name} | {' | '.join(map(str, case))} | {figures} |", flush=True)


def measure(
    model: str, arguments: argparse.Namespace, batch_size: int, length: int, threads: int, accumulate_steps: int
) -> dict:
    options = {
        "--model": model,
        "--dataset": arguments.dataset,
        "--precision": "auto",
        "--batch-size": batch_size,
        "--sequence-length": length,
        "--accumulate-steps": accumulate_steps,
        "--steps": arguments.steps,
    }
    flags = [str(part) for option in options.items() for part in option]
    cores = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        [sys.executable, OURS, *flags],
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # TensorFlow starts one thread per core
    )
    if done.returncode:
        sys.exit(f"{' '.join(flags)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
