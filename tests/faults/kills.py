"""Kill and resume runs of the sample; report the phases that were hit and any difference in the results.

    python -m tests.faults.kills [--kills 60] [--seed 1] [--table kills.json]

Every run is a separate process. Half of the kills come at a time drawn uniformly from the length of an uninterrupted
run, the other half aim at a phase. The output and the files of the process show the phase that a kill hit. In the end,
the run must equal the uninterrupted one: weights byte for byte, and every number of metrics.jsonl and history.csv
except times.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.tiny_run import STEPS_PER_EPOCH, TIMES, TINY, timeless

# Every campaign aims at these phases. `start` is Python with its imports, before the run directory exists.
AIMED_AT = ("data preparation", "first step", "mid-epoch", "checkpoint", "validation", "export")
PHASES = ("start", *AIMED_AT, "end of epoch", "after the end")

# Each precision and each way to process a batch gives other last bits. In `_EARLY`, the learning rate climbs until,
# after three of six epochs, an epoch is no better than the one before.
_EARLY = (
    "--training.early_stopping_patience", "1", "--epochs", "6", "--learning-rate", "0.1",
    "--optimizer.warmup_ratio", "0.3",
)  # fmt: skip
_PARTS = ("--training.accumulate_steps", "2")
_HALF = ("--training.precision", "bfloat16")
VARIANTS = {
    "float32": (),
    "bfloat16": _HALF,
    "accumulation": _PARTS,
    "accumulation, bfloat16": (*_PARTS, *_HALF),
    "early stopping": _EARLY,
    "early stopping, bfloat16": (*_EARLY, *_HALF),
}
# 20 batches, so that validation takes long enough to be hit.
SAMPLE = ("--data.num_validation_sequences", "320", "--training.log_every", "1", "--checkpoint.every_steps", "3")


@dataclass(frozen=True)
class Kill:
    """A kill.

    Attributes:
        aim: a phase, or "uniform".
        phase: the phase that was hit.
        seconds: since the start of the process.
        step: the last one logged.
    """

    variant: str
    aim: str
    phase: str
    seconds: float
    step: int
    before_first_checkpoint: bool


@dataclass
class Outcome:
    """The result of a run that was killed."""

    variant: str
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)  # from the uninterrupted run


class Life:
    """One process of a run, from its start to its end or to its kill."""

    def __init__(
        self, folder: Path, flags: tuple[str, ...], steps_per_epoch: int = STEPS_PER_EPOCH, **environment: str
    ):
        self.run = folder / "RUN"
        self._steps_per_epoch = steps_per_epoch
        self._config_before = self._config_inode()
        self._temporary_before = set(self.run.glob("checkpoints/.step-*"))
        self._log_path = folder / "log.txt"
        environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"} | environment
        command: list[str | Path] = [sys.executable, ROOT / "train.py", *flags, "--output-dir", "RUN", "--resume"]
        with open(self._log_path, "w") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def _config_inode(self) -> int:
        """Each process rewrites the file when it has the lock."""
        path = self.run / "config.toml"
        return path.stat().st_ino if path.exists() else 0

    def events(self) -> list[dict[str, Any]]:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def phase(self) -> str:
        """The phase that the process is in, or was in when it died."""
        if set(self.run.glob("checkpoints/.step-*")) - self._temporary_before:
            return "checkpoint"
        if self._config_inode() == self._config_before:
            return "start"
        log = self.log
        if "\nprecision " not in log:  # the last line before training
            return "data preparation"
        events = self.events()
        last: dict[str, Any] = events[-1] if events else {"event": "none", "step": -1}
        if last["event"] == "end":
            return "after the end"
        if not events:
            return "validation"
        if last["event"] == "epoch" and (self.run / "checkpoints" / f"step-{last['step']:010d}").exists():
            return "export"  # only the end of training writes a checkpoint at the last step of an epoch
        if "\nstep " not in log and "\nepoch " not in log:
            return "first step"
        if last["event"] == "epoch":
            return "end of epoch"
        return "validation" if last["step"] % self._steps_per_epoch == 0 else "mid-epoch"

    def wait_until(self, reached: Any) -> bool:
        """Wait until `reached()`; False if the process ended first."""
        while self.process.poll() is None:
            if reached():
                return True
            time.sleep(0.0005)
        return False

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        return self.wait_until(lambda: time.monotonic() >= until)

    def kill(self, variant: str, aim: str) -> Kill:
        seconds = self.seconds
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        step = next((event["step"] for event in reversed(self.events())), 0)
        had_checkpoint = any(self.run.glob("checkpoints/step-*"))
        return Kill(variant, aim, self.phase(), round(seconds, 2), step, not had_checkpoint)


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run: its directory, its length, and the seconds in each phase."""

    folder: Path
    seconds: float
    phase_seconds: dict[str, float]


def run_whole(folder: Path, flags: tuple[str, ...], steps_per_epoch: int = STEPS_PER_EPOCH) -> Whole:
    folder.mkdir(parents=True)
    life = Life(folder, flags, steps_per_epoch)
    seen: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    now, phase = life.seconds, "start"
    while life.process.poll() is None:
        before, now = now, life.seconds
        if now - before < 60:  # otherwise the machine was suspended
            seen[phase] += now - before
        phase = life.phase()
        time.sleep(0.002)
    if life.process.returncode:
        raise RuntimeError(f"the uninterrupted run ended with {life.process.returncode}:\n{life.log}")
    seen["validation"] = min(seen["validation"], 3.0)
    return Whole(folder, sum(seen.values()), seen)


def kill_once(life: Life, variant: str, aim: str, whole: Whole, rng: random.Random) -> Kill | None:
    """Kill `life` at `aim`; None if it ended before."""
    if aim == "uniform":
        alive = life.wait(rng.uniform(0, whole.seconds))
    elif aim == "checkpoint":
        for _ in range(rng.randrange(3)):  # not always the first of the process
            life.wait_until(lambda: life.phase() == aim)
            life.wait_until(lambda: life.phase() != aim)
        alive = life.wait_until(lambda: life.phase() == aim) and life.wait(rng.uniform(0, 0.003))
    elif (
        aim == "validation" and rng.random() < 0.7
    ):  # that of an epoch, which is short; the one before training is long
        first = life.events()
        alive = life.wait_until(lambda: life.phase() == "validation" and len(life.events()) > max(1, len(first)))
    elif aim == "mid-epoch":
        alive = life.wait_until(lambda: life.phase() == aim) and life.wait(rng.uniform(0, 0.05))
    else:
        alive = life.wait_until(lambda: life.phase() == aim) and life.wait(rng.uniform(0, whole.phase_seconds[aim]))
    if not alive:
        return None
    kill = life.kill(variant, aim)
    print(f"  {kill.aim:<17}hit {kill.phase:<17}after {kill.seconds:6.2f} s at step {kill.step}", flush=True)
    return kill


def run_killed(
    folder: Path, variant: str, flags: tuple[str, ...], aims: list[str], whole: Whole, rng: random.Random,
    steps_per_epoch: int = STEPS_PER_EPOCH,
) -> Outcome:  # fmt: skip
    """Kill one run at each of `aims`, let it finish, and compare it with `whole`."""
    folder.mkdir(parents=True)
    outcome = Outcome(variant)
    while True:
        life = Life(folder, flags, steps_per_epoch)
        aim = aims.pop(0) if aims else None
        kill = kill_once(life, variant, aim, whole, rng) if aim else None
        if kill is None:
            if life.process.wait():
                outcome.differences.append(f"ended with {life.process.returncode}: {life.log.splitlines()[-1:]}")
            break
        outcome.kills.append(kill)
    if not outcome.differences:
        outcome.differences = differences(folder / "RUN", whole.folder / "RUN")
    return outcome


def differences(run: Path, whole: Path) -> list[str]:
    """Differences between a run that was killed and an uninterrupted one."""
    found = []
    if (run / "model" / "model.safetensors").read_bytes() != (whole / "model" / "model.safetensors").read_bytes():
        found.append("the weights")
    ours, others = (
        timeless([json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()])
        for each in (run, whole)
    )
    if ours != others:
        found.append("metrics.jsonl")
    if _history(run) != _history(whole):
        found.append("history.csv")
    # The same files, except those of TensorBoard, whose names have times; no temporary files.
    our_files, other_files = (
        sorted(str(path.relative_to(each)) for path in each.rglob("*") if "tensorboard" not in str(path))
        for each in (run, whole)
    )
    found += [f"file {name}" for name in sorted(set(our_files) ^ set(other_files))]
    return found


def _history(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def campaign(folder: Path, num_kills: int, seed: int, table: Path, at_least: int = 5) -> list[Outcome]:
    """Kill runs of all variants until there are `num_kills` kills, and `at_least` in each phase aimed at.

    A run is killed three times in the phases with the fewest hits, and three times uniformly. A time after its end
    means no further kill. The results so far are written to `table` after each run.
    """
    rng = random.Random(seed)
    (folder / "tiny.toml").write_text(TINY)
    flags = {name: ("--config", str(folder / "tiny.toml"), *SAMPLE, *more) for name, more in VARIANTS.items()}
    wholes: dict[str, Whole] = {}
    for number, variant in enumerate(VARIANTS):
        wholes[variant] = run_whole(folder / f"whole-{number}", flags[variant])
        print(f"{variant}: {wholes[variant].seconds:.1f} s without a kill", flush=True)
        last = json.loads((wholes[variant].folder / "RUN" / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["epoch"] == 3, f"{variant}: ended after epoch {last['epoch']}"  # by its length or by early stopping
    return kill_runs(folder, flags, wholes, num_kills, rng, table, at_least)


def kill_runs(
    folder: Path, flags: dict[str, tuple[str, ...]], wholes: dict[str, Whole], num_kills: int, rng: random.Random,
    table: Path, at_least: int,
) -> list[Outcome]:  # fmt: skip
    outcomes: list[Outcome] = []
    for number in range(num_kills):
        kills = [kill for outcome in outcomes for kill in outcome.kills]
        hits = Counter(kill.phase for kill in kills)
        if len(kills) >= num_kills and min(hits[phase] for phase in AIMED_AT) >= at_least:
            break
        by_variant = Counter(kill.variant for kill in kills)
        variant = min(VARIANTS, key=lambda name: by_variant[name])
        # In chronological order; otherwise the run would never reach the later phases.
        targets = sorted(sorted(AIMED_AT, key=lambda phase: hits[phase])[:3], key=AIMED_AT.index)
        aims = [aim for target in targets for aim in rng.sample([target, "uniform"], 2)]
        outcome = run_killed(folder / f"run-{number}", variant, flags[variant], aims, wholes[variant], rng)
        outcomes.append(outcome)
        write_table(table, outcomes)
        print(f"{variant}: {', '.join(outcome.differences) or 'no difference'}", flush=True)
        if not outcome.differences:
            shutil.rmtree(folder / f"run-{number}")
    return outcomes


def describe(outcomes: list[Outcome]) -> str:
    """The table: kills by phase and variant, kills before the first checkpoint, and differences."""
    variants = list(dict.fromkeys(outcome.variant for outcome in outcomes))
    width = max(len(variant) for variant in variants)
    lines = [f"{'':<18}" + "".join(f"{variant:>{width + 2}}" for variant in variants) + f"{'all':>8}"]
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    for phase in PHASES:
        counts = [sum(kill.phase == phase and kill.variant == variant for kill in kills) for variant in variants]
        lines.append(f"{phase:<18}" + "".join(f"{count:>{width + 2}}" for count in counts) + f"{sum(counts):>8}")
    early = sum(kill.before_first_checkpoint for kill in kills)
    uniform = sum(kill.aim == "uniform" for kill in kills)
    lost = sum(bool(outcome.differences) for outcome in outcomes)
    lines.append(
        f"{len(kills)} kills, {uniform} of them uniform in time, {early} before the first checkpoint; "
        f"{len(outcomes)} runs, {lost} of them with differences"
    )
    lines += [f"DIFFERENT {each.variant}: {', '.join(each.differences)}" for each in outcomes if each.differences]
    return "\n".join(lines)


def write_table(path: Path, outcomes: list[Outcome]) -> None:
    path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill and resume runs of the sample, and compare the results.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="seed of the times of the kills")
    parser.add_argument("--table", type=Path, default=Path("kills.json"), help="JSON file for all kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tf_mlm-kills-", ignore_cleanup_errors=True) as folder:
        outcomes = campaign(Path(folder), arguments.kills, arguments.seed, arguments.table)
    print(describe(outcomes))
    return any(outcome.differences for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
