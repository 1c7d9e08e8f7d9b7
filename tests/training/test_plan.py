"""The length of a training, and what is said of it beforehand."""

from dataclasses import replace
from pathlib import Path

import pytest

from tf_mlm.config import Config, DataConfig, OptimizerConfig, TrainingConfig
from tf_mlm.errors import Refused

HERE = Path(".")


@pytest.fixture
def plan(tensorflow):
    from tf_mlm.training import plan

    return plan


def config(optimizer=None, data=None, **training) -> Config:
    return replace(
        Config(),
        training=TrainingConfig(**training),
        optimizer=OptimizerConfig(**(optimizer or {})),
        data=DataConfig(**(data or {})),
    )


@pytest.mark.parametrize(
    ("settings", "num_sequences", "expected"),
    [
        ({}, 3000, (20, 94, 1880, 112)),  # 93.75 batches an epoch
        ({"epochs": 3, "batch_size": 64}, 10_000, (3, 157, 471, 28)),
        ({"epochs": 2, "batch_size": 5}, 10, (2, 2, 4, 0)),
        ({"epochs": 1, "batch_size": 32}, 1, (1, 1, 1, 0)),
        ({"epochs": 1, "batch_size": 4, "num_train_steps": 250}, 400, (3, 100, 250, 15)),  # in the third epoch's middle
        ({"epochs": 9, "batch_size": 4, "num_train_steps": 300}, 400, (3, 100, 300, 18)),
        ({"epochs": 9, "batch_size": 4, "num_train_steps": 7}, 400, (1, 100, 7, 0)),
    ],
)
def test_durations_become_updates(plan, settings, num_sequences, expected):
    length = plan.RunLength.of(config(**settings), num_sequences)
    assert (length.epochs, length.steps_per_epoch, length.num_train_steps, length.num_warmup_steps) == expected


def test_a_number_of_warmup_steps_is_taken_as_it_is_or_refused(plan):
    settings = {"epochs": 1, "batch_size": 10}
    assert plan.RunLength.of(config({"num_warmup_steps": 9}, **settings), 100).num_warmup_steps == 9
    with pytest.raises(Refused, match="num_warmup_steps = 10: must be below the 10 steps"):
        plan.RunLength.of(config({"num_warmup_steps": 10}, **settings), 100)


class Sizes:
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 768, 6, 12, 30522


class DistilBertBase:
    """All that a plan asks of a model."""

    config = Sizes

    @staticmethod
    def count_params() -> int:
        return 66_985_530


def test_the_plan_says_steps_tokens_rates_and_parameters(plan):
    settings = config({"learning_rate": 8e-4, "num_warmup_steps": 20}, epochs=2, batch_size=32, precision="float32")
    lines = plan.describe_plan(
        settings, plan.RunLength.of(settings, 1600), DistilBertBase, "bfloat16", HERE
    ).splitlines()
    assert lines[:4] == [
        "steps             100 = 2 epochs of 50, batch 32, warmup 20",
        "tokens        409,600 seen in training, 4,096 a step",
        "rate       4e-05 at step 1, 0.0008 at step 21, 0.0005 at step 51, 1e-05 at step 100",
        "parameters 66,985,530",
    ]
    # A checkpoint has weights, two moments and a best model, 4 * 4 bytes a parameter: 1 GiB, and three may be there.
    assert lines[5].startswith("disk          3.2 GiB at the peak, for 3 checkpoints and the model; ")
    assert lines[5].endswith("iB free") and len(lines) == 6


def test_the_plan_says_when_the_last_epoch_is_cut_short(plan):
    settings = config(num_train_steps=70, batch_size=32)
    lines = plan.describe_plan(
        settings, plan.RunLength.of(settings, 1600), DistilBertBase, "bfloat16", HERE
    ).splitlines()
    assert lines[0] == "steps              70 = 2 epochs of 50, the last one cut short, batch 32, warmup 4"


def test_a_trial_is_told_as_rate_time_and_memory(plan):
    settings = config(epochs=2, batch_size=32)
    length = plan.RunLength.of(settings, 1600)  # 100 steps, and 3 validations
    trial = plan.Trial(step_seconds=4.0, validation_seconds=20.0, peak_bytes=3 * 2**30)
    assert plan.describe_trial(settings, length, trial).splitlines() == [
        "speed           1,024 tokens/s in 5 trial steps, 4 s a step",
        "time          0:07:40 = 0:06:40 of training and 0:01:00 of validation",
        "memory            3.0 GiB at the peak of the trial, on the host",
    ]


def gib(plan, **training) -> float:
    settings = config(**training)
    lines = plan.describe_plan(
        settings, plan.RunLength.of(settings, 3000), DistilBertBase, settings.training.precision, HERE
    ).splitlines()
    assert lines[4].startswith("memory") and lines[4].endswith(" GiB at the peak, estimated")
    return float(lines[4].split()[1])


def test_the_memory_estimate_is_above_what_must_be_there_and_grows_with_the_batch(plan):
    """Weights, gradients and two moments in float32 are 16 bytes a parameter: 1.0 GiB for DistilBERT-base."""
    assert 1.0 < gib(plan, batch_size=1, precision="float32") < 2.5
    assert gib(plan, batch_size=64, precision="float32") > 1.5 * gib(plan, batch_size=16, precision="float32")
    assert gib(plan, batch_size=32, precision="bfloat16") < gib(plan, batch_size=32, precision="float32")
    assert gib(plan, batch_size=32, accumulate_steps=8) < gib(plan, batch_size=32)
