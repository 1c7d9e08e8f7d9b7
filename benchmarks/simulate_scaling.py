"""Estimate the speed of training on many accelerators from measured parts and published hardware figures.

    python benchmarks/simulate_scaling.py

A step takes the larger of two times: compute + exchange of gradients, and input. The input pipeline runs in parallel.
The exchange does not overlap with compute here, which makes the estimate conservative. The script prints the tables of
docs/scaling.md. `benchmarks/distributed.py` compares the sum of compute and exchange with measured steps.
"""

import math
from dataclasses import dataclass, replace

from transformers import BertConfig, DistilBertConfig

from tf_mlm.data.masking import num_slots
from tf_mlm.model.matmul_peak import step_products

LENGTH = 128
BYTES_PER_TOKEN = 4.2  # of English text: 33.1 MB of film reviews are 7.85 million tokens
TEXTS = {"1 GB": 1e9, "100 GB": 1e11, "10 TB": 1e13}
LARGEST_BATCH = 8192  # sequences; beyond, a step learns less per sequence (You et al. 2020 use up to 32,768 with LAMB)
MODELS = {
    "DistilBERT-base": (DistilBertConfig(), 66_985_530, 256),  # config, parameters, sequences per accelerator
    "BERT-large": (
        BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
        335_174_458,
        64,
    ),
}


@dataclass(frozen=True)
class Hardware:
    """Accelerators in machines of `per_machine`, whose `processes` train together and prepare the input.

    Attributes:
        flops: floating-point operations per second that a step reaches.
        inside: bytes per second of the links of an accelerator inside its machine.
        between: bytes per second of all network links of a machine, which its accelerators use together.
        latency: seconds to start one message.
        input_tokens: tokens per second of the input pipeline of one process.
    """

    per_machine: int
    processes: int
    flops: float
    inside: float
    between: float
    latency: float
    input_tokens: float


# A machine with 8 H100 SXM: 989 TFLOP/s each in bfloat16, NVLink with 450 GB/s in each direction, and 8 links of
# InfiniBand NDR with 400 Gbit/s (published by NVIDIA). 40 % utilization is an assumption: tf_mlm has not been measured
# on a GPU. The input was measured on two CPU cores (docs/benchmarks.md).
H100 = Hardware(
    per_machine=8,
    processes=1,
    flops=0.4 * 989e12,
    inside=450e9,
    between=8 * 50e9,
    latency=10e-6,
    input_tokens=2.6e6,
)


def step_flops(config: object, num_sequences: int) -> float:
    products = step_products(config, num_sequences, LENGTH, num_slots(LENGTH, 0.15))
    return float(sum(product.flops for product in products))


def exchange_seconds(hardware: Hardware, number: int, num_bytes: float) -> float:
    """Time of an all-reduce: the better of a ring and a tree (Thakur et al. 2005), at the speed of the slowest link."""
    if number == 1:
        return 0.0
    bandwidth = hardware.inside if number <= hardware.per_machine else hardware.between
    ring = 2 * (number - 1) / number * num_bytes / bandwidth + 2 * (number - 1) * hardware.latency
    tree = 2 * num_bytes / bandwidth + 2 * math.ceil(math.log2(number)) * hardware.latency
    return min(ring, tree)


def step_seconds(hardware: Hardware, number: int, flops: float, num_bytes: float, tokens: float) -> tuple[float, ...]:
    """Seconds of compute, exchange and input of a step; `tokens` is per accelerator."""
    accelerators_per_process = min(number, hardware.per_machine // hardware.processes)
    return (
        flops / hardware.flops,
        exchange_seconds(hardware, number, num_bytes),
        tokens * accelerators_per_process / hardware.input_tokens,
    )


def print_estimates(hardware: Hardware) -> None:
    for name, (config, parameters, largest) in MODELS.items():
        print(f"\n{name}, {parameters / 1e6:,.0f} million parameters\n")
        header = ["accelerators", "sequences each", "compute", "exchange", "input", "limit", "tokens/s", "of linear"]
        print("| " + " | ".join([*header, *TEXTS]) + " |")
        print("|---:" * (len(header) + len(TEXTS)) + "|")
        first = 0.0
        for number in (1, 8, 64, 512):
            each = min(largest, LARGEST_BATCH // number)
            parts = step_seconds(hardware, number, step_flops(config, each), 4 * parameters, each * LENGTH)
            compute, exchange, reading = parts
            seconds = max(compute + exchange, reading)
            speed = number * each * LENGTH / seconds
            first = first or speed
            limit = "input" if reading > compute + exchange else "exchange" if exchange > compute else "compute"
            times = [duration(size / BYTES_PER_TOKEN / speed) for size in TEXTS.values()]
            cells = [f"{number:,}", str(each), *(f"{1000 * part:.1f} ms" for part in parts), limit]
            cells += [f"{speed / 1e6:,.1f} M", f"{speed / first / number:.2f}", *times]
            print("| " + " | ".join(cells) + " |")


def duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    print("One process for each machine:")
    print_estimates(H100)
    print("\nOne process for each accelerator:")
    print_estimates(replace(H100, processes=H100.per_machine))


if __name__ == "__main__":
    main()
