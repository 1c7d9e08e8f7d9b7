"""SIGKILL at any time: the resumed run ends with the same weights and numbers as an uninterrupted one."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.kills import AIMED_AT, VARIANTS, Life, Whole, campaign, describe, kill_once, run_killed, run_whole
from tests.tiny_run import TINY, train
from tests.training.test_train import assert_same_run


def test_a_run_killed_while_it_writes_a_checkpoint_ends_with_the_same_results(
    finished_run: Path, tmp_path: Path
) -> None:
    """Kills one process and resumes in this process, which has imported TensorFlow already."""
    (tmp_path / "tiny.toml").write_text(TINY)
    flags = ("--checkpoint.every_steps", "3")
    life = Life(tmp_path, ("--config", "tiny.toml", *flags))
    kill = kill_once(life, "float32", "checkpoint", Whole(finished_run, 0, {}), random.Random(0))
    assert kill is not None, life.log
    assert train(tmp_path, *flags, "--output-dir", "RUN", "--resume") == 0
    assert_same_run(tmp_path / "RUN", finished_run)
    assert not list((tmp_path / "RUN").rglob(".*.????????"))


@pytest.mark.slow
def test_no_kill_of_a_sample_run_changes_its_results(tmp_path: Path) -> None:
    """50 kills or more, half of them uniform in time, each phase hit 5 times. Half an hour; -rP shows the table."""
    outcomes = campaign(tmp_path, num_kills=60, seed=1, table=tmp_path / "kills.json")
    print(describe(outcomes))
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    hits = Counter(kill.phase for kill in kills)
    assert len(kills) >= 50 and all(hits[phase] >= 5 for phase in AIMED_AT)
    assert {outcome.variant for outcome in outcomes} == VARIANTS.keys()
    assert [outcome for outcome in outcomes if outcome.differences] == []


@pytest.mark.slow
def test_no_kill_of_a_pretrained_model_on_reviews_changes_its_results(shared: Path, tmp_path: Path) -> None:
    flags = (
        "--model", str(shared / "models" / "minilm-l6-distilbert"), "--dataset", str(shared / "data" / "imdb"),
        "--data.num_train_sequences", "64", "--data.num_validation_sequences", "32", "--data.sequence_length", "64",
        "--batch-size", "8", "--epochs", "2", "--training.log_every", "1", "--checkpoint.every_steps", "3",
    )  # fmt: skip
    whole = run_whole(tmp_path / "whole", flags, steps_per_epoch=8)
    aims = ["data preparation", "first step", "checkpoint", "mid-epoch", "validation", "export"]
    outcome = run_killed(tmp_path / "killed", "reviews", flags, aims, whole, random.Random(2), steps_per_epoch=8)
    print(describe([outcome]))
    assert len(outcome.kills) >= 5 and outcome.differences == []
