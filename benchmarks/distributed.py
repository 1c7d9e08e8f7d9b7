"""Compare one process on one core with several processes on one core each.

    python benchmarks/distributed.py [--model NAME_OR_DIR] [--dataset NAME_OR_PATH] [--processes 2] [--rounds 3]

Each process trains the same number of sequences per step, so N processes would reach N times the tokens/s if the
exchange of gradients took no time. The runs take turns. The table has the median tokens/s of all steps, their ratio to
the linear speed, the time to exchange gradients of this size alone as a share of the step, and the bytes of the
gradients. `losses` is the largest relative difference between the losses of several processes and those of one process
with the whole batch. With more processes than cores, the processes share the cores. `predicted` uses the formula of
`simulate_scaling.py`: the time of a step of one process plus the time of the exchange.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import transformers

OURS = Path(__file__).parent / "peers" / "ours.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert-base-uncased", help="Hub name or directory of the config")
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round")
    parser.add_argument("--batch-size", type=int, default=16, help="sequences per step and process")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--gradient-precision", default="float32", help="of the exchange: float32 or bfloat16")
    arguments = parser.parse_args()

    number, size = arguments.processes, arguments.batch_size
    alone: list[dict] = []
    together: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        for part in (transformers.AutoConfig, transformers.AutoTokenizer):
            part.from_pretrained(arguments.model).save_pretrained(model)
        options = ["--model", model, "--dataset", arguments.dataset, "--steps", arguments.steps]
        options += ["--precision", arguments.precision, "--gradient-precision", arguments.gradient_precision]
        whole_batch = run(1, [*options, "--batch-size", size * number])
        for _ in range(arguments.rounds):
            alone.append(run(1, [*options, "--batch-size", size]))
            together.append(run(number, [*options, "--batch-size", size * number]))
            print(alone[-1], together[-1], file=sys.stderr, flush=True)
    one, several = (median(second for each in runs for second in each["seconds"]) for runs in (alone, together))
    tokens = size * 128
    exchange = median(each["exchange_seconds"] for each in together)
    predicted = one * -(-number // len(os.sched_getaffinity(0))) + exchange
    print(
        "| processes | seconds per step | predicted | tokens/s | ratio to linear | exchange | of the step | gradients |"
    )
    print("|---:" * 8 + "|")
    print(f"| 1 | {one:.2f} | | {tokens / one:,.0f} | | | | |")
    bytes_of = {"float32": 4, "bfloat16": 2}[arguments.gradient_precision]
    gradients = f"{bytes_of * together[0]['parameters'] / 2**20:,.0f} MiB"
    print(
        f"| {number} | {several:.2f} | {predicted:.2f} | {number * tokens / several:,.0f} | {one / several:.2f} | "
        f"{exchange:.2f} s | "
        f"{exchange / several:.0%} | {gradients} |"
    )
    pairs = zip(together[0]["losses"], whole_batch["losses"], strict=True)
    print(f"losses: {max(abs(a - b) / b for a, b in pairs):.1e}")


def run(number: int, options: list) -> dict:
    """Run `number` processes, each bound to one core, and return the report of the first one."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
    for server in servers:
        server.close()
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    for index in range(number):
        environment = dict(os.environ)
        environment.pop("TF_CONFIG", None)
        if number > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = ["taskset", "-c", str(cores[index % len(cores)]), sys.executable, str(OURS), *map(str, options)]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("\n".join(errors[-3000:] for _, errors in outputs))
    return json.loads(outputs[0][0].splitlines()[-1])


if __name__ == "__main__":
    main()
