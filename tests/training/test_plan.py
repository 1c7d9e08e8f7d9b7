"""The length of a training, and the plan that is printed before it."""

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tf_mlm.config import Config, DataConfig, OptimizerConfig, TrainingConfig
from tf_mlm.errors import Refused
from tf_mlm.run.directory import RunDirectory

MODEL = SimpleNamespace(
    config=SimpleNamespace(hidden_size=768, num_hidden_layers=6, num_attention_heads=12, vocab_size=30522),
    count_params=lambda: 66_985_530,
    trainable_variables=[SimpleNamespace(shape=(66_985_530,))],
)
"""The part of a model that a plan needs, with the size of DistilBERT-base."""


@pytest.fixture
def plan(tensorflow: None) -> ModuleType:
    from tf_mlm.training import plan

    return plan


def config(optimizer: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **training: Any) -> Config:
    return replace(
        Config(),
        training=TrainingConfig(**training),
        optimizer=OptimizerConfig(**(optimizer or {})),
        data=DataConfig(**(data or {})),
    )


def build_job(settings: Config, num_sequences: int, tokens_per_batch: int = 3000) -> Any:
    """A job whose batches have `tokens_per_batch` real tokens each."""
    from tf_mlm.runtime import Precision
    from tf_mlm.training.job import Job
    from tf_mlm.training.length import RunLength

    data = SimpleNamespace(count_tokens=lambda config, first, end: (end - first) * tokens_per_batch)
    machine = SimpleNamespace(
        precision=Precision(settings.training.precision.replace("auto", "bfloat16"), "a test"),
        strategy=SimpleNamespace(num_replicas_in_sync=1),
        num_workers=1,
    )
    length = RunLength.of(settings, num_sequences)
    parts: dict[str, Any] = {"machine": machine, "tokenizer": None, "data": data, "model": MODEL}
    return Job(config=settings, run=RunDirectory(Path("RUN")), newly_initialized=[], length=length, **parts)


@pytest.mark.parametrize(
    ("settings", "num_sequences", "expected"),
    [
        ({}, 3000, (20, 94, 1880, 112)),  # 93.75 batches per epoch
        ({"epochs": 3, "batch_size": 64}, 10_000, (3, 157, 471, 28)),
        ({"epochs": 2, "batch_size": 5}, 10, (2, 2, 4, 0)),
        ({"epochs": 1, "batch_size": 32}, 1, (1, 1, 1, 0)),
        ({"epochs": 1, "batch_size": 4, "num_train_steps": 250}, 400, (3, 100, 250, 15)),  # middle of the third epoch
        ({"epochs": 9, "batch_size": 4, "num_train_steps": 300}, 400, (3, 100, 300, 18)),
        ({"epochs": 9, "batch_size": 4, "num_train_steps": 7}, 400, (1, 100, 7, 0)),
    ],
)
def test_durations_are_converted_to_updates(
    tensorflow: None, settings: dict[str, Any], num_sequences: int, expected: tuple[int, int, int, int]
) -> None:
    from tf_mlm.training.length import RunLength

    length = RunLength.of(config(**settings), num_sequences)
    assert (length.epochs, length.steps_per_epoch, length.num_train_steps, length.num_warmup_steps) == expected


def test_a_number_of_warmup_steps_is_used_or_refused(tensorflow: None) -> None:
    from tf_mlm.training.length import RunLength

    settings: dict[str, Any] = {"epochs": 1, "batch_size": 10}
    assert RunLength.of(config({"num_warmup_steps": 9}, **settings), 100).num_warmup_steps == 9
    with pytest.raises(Refused, match="num_warmup_steps = 10: must be less than the 10 steps"):
        RunLength.of(config({"num_warmup_steps": 10}, **settings), 100)


def test_the_plan_reports_steps_real_tokens_rates_parameters_and_disk(plan: ModuleType) -> None:
    settings = config({"learning_rate": 8e-4, "num_warmup_steps": 20}, epochs=2, batch_size=32)
    lines = plan.describe_plan(build_job(settings, 1600)).splitlines()
    assert lines[:4] == [
        "steps             100 = 2 epochs of 50, batch 32, warmup 20",
        "tokens        300,000 in training, without padding; 4,096 positions per step",
        "rate       4e-05 at step 1, 0.0008 at step 21, 0.0005 at step 51, 1e-05 at step 100",
        "parameters 66,985,530",
    ]
    # A checkpoint has weights, two moments and a best model, 4 * 4 bytes per parameter: 1 GiB. Up to three exist.
    assert lines[5].startswith("disk          3.2 GiB at the peak, for 3 checkpoints and the model; ")
    assert lines[5].endswith("iB free") and len(lines) == 6


def test_the_plan_reports_an_incomplete_last_epoch(plan: ModuleType) -> None:
    lines = plan.describe_plan(build_job(config(num_train_steps=70, batch_size=32), 1600)).splitlines()
    assert lines[0] == "steps              70 = 2 epochs of 50, the last one incomplete, batch 32, warmup 4"


def trial(plan: ModuleType, **changes: Any) -> Any:
    return plan.Trial(
        **{
            "step_seconds": 4.0,
            "validation_seconds": 20.0,
            "compile_seconds": 30.0,
            "startup_seconds": 10.0,
            "peak_bytes": 3 * 2**30,
            **changes,
        }
    )


def test_a_trial_gives_speed_time_with_its_parts_and_memory(plan: ModuleType) -> None:
    job = build_job(config(epochs=2, batch_size=32), 1600, tokens_per_batch=1000)  # 100 steps, and 3 validations
    assert plan.describe_trial(job, trial(plan)).splitlines() == [
        "speed             250 tokens/s in 5 trial steps, 4 s per step",
        "time          0:08:20 = 0:00:10 startup and data + 0:00:30 compilation + 0:06:40 training + 0:01:00 "
        "validation; without the export at the end",
        "memory            3.0 GiB host memory at the peak of the trial",
    ]


def test_the_time_of_a_resumed_run_counts_only_the_remaining_steps(plan: ModuleType) -> None:
    job = build_job(config(epochs=2, batch_size=32), 1600)
    time = plan.describe_trial(job, trial(plan, steps_done=75)).splitlines()[1]
    assert "0:01:40 training (75 steps done) + 0:00:20 validation" in time


def memory(plan: ModuleType, **training: Any) -> float:
    """The estimate in GiB, without the current memory of this process."""
    line = plan.describe_plan(build_job(config(**training), 3000)).splitlines()[4]
    found = re.fullmatch(r"memory +([\d.]+) GiB at the peak, estimated", line)
    assert found
    return float(found[1]) - plan.peak_memory_bytes() / 2**30


def test_the_memory_estimate_exceeds_the_known_parts_and_grows_with_the_batch(plan: ModuleType) -> None:
    """Gradients and two moments in float32 are 12 bytes per parameter: 0.75 GiB for DistilBERT-base."""
    assert 0.75 < memory(plan, batch_size=1, precision="float32") < 1.6
    assert memory(plan, batch_size=64, precision="float32") > 2 * memory(plan, batch_size=16, precision="float32")
    assert memory(plan, batch_size=32, precision="bfloat16") < memory(plan, batch_size=32, precision="float32")
    assert memory(plan, batch_size=32, accumulate_steps=8) < memory(plan, batch_size=32)
