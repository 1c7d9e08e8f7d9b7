"""Measure the seconds to the answer of `--help`, to a refused setting, and to the end of the first training step.

    python benchmarks/startup.py [--model NAME_OR_DIR] [--dataset NAME_OR_PATH]

The cache is warm. The lower bound of the first step is the time to import TensorFlow and transformers and to trace and
compile the step once; both are measured.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
RUNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert-base-uncased")
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    arguments = parser.parse_args()
    train = [sys.executable, str(ROOT / "train.py")]
    commands = {
        "--help": [*train, "--help"],
        "refused setting": [*train, "--training.epochs", "0"],
        "--print-config": [*train, "--print-config"],
    }
    imports = "import tensorflow, tf_keras, transformers, datasets; transformers.TFDistilBertForMaskedLM"
    commands["the imports alone"] = [sys.executable, "-c", imports]
    for name, command in commands.items():
        print(f"{name:<30} {median(seconds_of(command) for _ in range(RUNS)):6.2f} s")
    flags = ["--model", arguments.model, "--dataset", arguments.dataset, "--training.log_every", "1"]
    flags += ["--data.num_validation_sequences", "32"]
    first_step(train, flags)  # fills the cache
    starts, steps = zip(*(first_step(train, flags) for _ in range(RUNS)), strict=True)
    print(f"{'to the end of the first step':<30} {median(starts):6.2f} s")
    print(f"{'of which tracing and step':<30} {median(steps):6.2f} s, from the end of the first validation on")


def seconds_of(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - start


def first_step(train: list[str], flags: list[str]) -> tuple[float, float]:
    """Seconds to the end of the first step, and seconds from the start event to that step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        start = time.perf_counter()
        process = subprocess.Popen(
            [*train, *flags, "--output-dir", str(run)], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        validated = wait_for(run / "metrics.jsonl", '"start"', process) - start
        stepped = wait_for(run / "metrics.jsonl", '"step", ', process) - start
        process.kill()
        process.wait()
        return stepped, stepped - validated


def wait_for(path: Path, text: str, process: subprocess.Popen) -> float:
    while not (path.exists() and text in path.read_text()):
        if process.poll() is not None:
            sys.exit(f"the run ended early, with exit code {process.returncode}")
        time.sleep(0.02)
    return time.perf_counter()


if __name__ == "__main__":
    main()
