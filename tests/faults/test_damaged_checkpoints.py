"""A damaged checkpoint is skipped for the one before it, and the run ends like an undamaged one."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_run import train
from tests.training.test_train import assert_same_run, send_signal

NEWEST, BEFORE = "step-0000000013", "step-0000000012"
FLAGS = ("--checkpoint.every_steps", "6", "--output-dir", "RUN")


def flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 0xFF
        path.write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "first byte flipped": flip(0),
    "a byte flipped": flip(0.6),
    "last byte flipped": flip(1),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
}
FILES = ("arrays.safetensors", "state.json")


@pytest.fixture(scope="module")
def stopped(tensorflow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was stopped at step 13, with checkpoints of steps 12 and 13. Read-only."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        send_signal(patch, "on_train_batch_end", at_step=13)
        assert train(folder, *FLAGS) == 143
    checkpoints = folder / "RUN" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [BEFORE, NEWEST]
    assert all(
        sorted(file.name for file in path.iterdir()) == [*FILES[:1], "model", *FILES[1:]]
        for path in checkpoints.iterdir()
    )
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "copy"))


def assert_resumes_from_the_one_before(folder: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert train(folder, *FLAGS, "--resume") == 0
    output = capsys.readouterr().out
    assert re.search(rf"^checkpoint {NEWEST} is damaged and skipped: \w+: \S", output, re.M), output
    assert "resumed    at step 12\n" in output
    assert_same_run(folder / "RUN", uninterrupted)


@pytest.mark.slow
def test_a_run_with_a_flipped_byte_in_its_newest_checkpoint_resumes_from_the_one_before(
    finished_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES["a byte flipped"](folder / "RUN" / "checkpoints" / NEWEST / "arrays.safetensors")
    assert_resumes_from_the_one_before(folder, finished_run, capsys)


def test_every_damage_to_a_checkpoint_is_detected(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without resuming the training."""
    from tf_mlm.run.checkpoint import load_checkpoint

    newest = folder / "RUN" / "checkpoints" / NEWEST
    fingerprint = json.loads(json.loads((newest / "state.json").read_text())["state"])["fingerprint"]
    checkpoint = load_checkpoint(newest.parent, fingerprint)
    assert checkpoint is not None
    progress, _ = checkpoint
    assert progress.step == 13
    intact = shutil.copytree(newest, tmp_path / "intact")
    for file in FILES:
        for name, damage in DAMAGES.items():
            damage(newest / file)
            checkpoint = load_checkpoint(newest.parent, fingerprint)
            assert checkpoint is not None
            progress, arrays = checkpoint
            assert progress.step == 12 and len(arrays) > 10, (file, name)
            output = capsys.readouterr().out
            assert re.fullmatch(rf"checkpoint {NEWEST} is damaged and skipped: \w+: \S.*\n", output), (file, name)
            shutil.copy(intact / file, newest / file)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_with_a_damaged_newest_checkpoint_resumes_from_the_one_before(
    finished_run: Path, folder: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Callable[[Path], object]
) -> None:
    damage(folder / "RUN" / "checkpoints" / NEWEST / file)
    assert_resumes_from_the_one_before(folder, finished_run, capsys)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left_unchanged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "RUN"
    for path in run.glob("checkpoints/*/state.json"):
        path.write_bytes(b"")
    metrics = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(folder, *FLAGS, "--resume") == 2
    captured = capsys.readouterr()
    assert "none of its checkpoints can be read; start a new run" in captured.err
    assert len(captured.err.splitlines()) == 1 and captured.out.count(" is damaged and skipped: ") == 2
    assert (run / "metrics.jsonl").read_bytes() == metrics
