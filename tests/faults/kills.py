"""Runs of the sample that are killed and resumed, over and over: what the kills hit, and whether anything was lost.

    python -m tests.faults.kills [--kills 60] [--seed 1] [--table kills.json]

Every run is a process of its own, killed by SIGKILL half of the times at a moment drawn uniformly from the length of an
uninterrupted run, half of the times in a phase aimed at. What a kill really hit is read off what the process has
printed and left on disk. In the end the run must equal the uninterrupted one: weights byte for byte, every number of
metrics.jsonl and history.csv but times.
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

# The phases that every campaign hits, and those between them. `start` is Python and its imports, before a run is there.
AIMED_AT = ("data preparation", "first step", "mid-epoch", "checkpoint", "validation", "export")
PHASES = ("start", *AIMED_AT, "end of epoch", "after the end")

# The last bits of a step are the same for any batch shape, but each precision and each way through a batch has its own.
# The rate climbs until, after three of six epochs, one is no better.
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
# 20 batches of validation, so that it takes long enough to be hit.
SAMPLE = ("--data.num_validation_sequences", "320", "--training.log_every", "1", "--checkpoint.every_steps", "3")


@dataclass(frozen=True)
class Kill:
    """`aim` is a phase or "uniform", `phase` what was hit, `seconds` into the life, `step` the last that was logged."""

    variant: str
    aim: str
    phase: str
    seconds: float
    step: int
    before_first_checkpoint: bool


@dataclass
class Outcome:
    """What a run that was killed ended in."""

    variant: str
    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)  # from the uninterrupted run; empty where nothing was lost


class Life:
    """One process of a run, from its start to its end or to the kill."""

    def __init__(
        self, folder: Path, flags: tuple[str, ...], steps_per_epoch: int = STEPS_PER_EPOCH, **environment: str
    ):
        self.run = folder / "RUN"
        self._steps_per_epoch = steps_per_epoch
        self._config_before = self._config_inode()
        self._temporary_before = set(self.run.glob("checkpoints/.step-*"))
        self._log_path = folder / "log.txt"
        environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"} | environment
        command = [sys.executable, ROOT / "train.py", *flags, "--output-dir", "RUN", "--resume"]
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
        """Written anew by each life once it has the lock."""
        path = self.run / "config.toml"
        return path.stat().st_ino if path.exists() else 0

    def events(self) -> list[dict[str, Any]]:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def phase(self) -> str:
        """What the process is, or was when it died, doing."""
        if set(self.run.glob("checkpoints/.step-*")) - self._temporary_before:
            return "checkpoint"
        if self._config_inode() == self._config_before:
            return "start"
        log = self.log
        if "\nprecision " not in log:  # the last line said before training
            return "data preparation"
        events = self.events()
        last = events[-1] if events else {"event": "none", "step": -1}
        if last["event"] == "end":
            return "after the end"
        if not events:
            return "validation"
        if last["event"] == "epoch" and (self.run / "checkpoints" / f"step-{last['step']:010d}").exists():
            return "export"  # only the end of training writes a checkpoint of an epoch's last step
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
    """An uninterrupted run: its folder, its length, and how many seconds each phase took the first time it came."""

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
        if now - before < 60:  # else the whole machine slept
            seen[phase] += now - before
        phase = life.phase()
        time.sleep(0.002)
    if life.process.returncode:
        raise RuntimeError(f"the uninterrupted run ended with {life.process.returncode}:\n{life.log}")
    seen["validation"] = min(seen["validation"], 3.0)
    return Whole(folder, sum(seen.values()), seen)


def kill_once(life: Life, variant: str, aim: str, whole: Whole, rng: random.Random) -> Kill | None:
    """Kill `life` as `aim` says; None where it ended before."""
    if aim == "uniform":
        alive = life.wait(rng.uniform(0, whole.seconds))
    elif aim == "checkpoint":
        for _ in range(rng.randrange(3)):  # not always the life's first
            life.wait_until(lambda: life.phase() == aim)
            life.wait_until(lambda: life.phase() != aim)
        alive = life.wait_until(lambda: life.phase() == aim) and life.wait(rng.uniform(0, 0.003))
    elif aim == "validation" and rng.random() < 0.7:  # of an epoch: a moment, where that before training is long
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
    """Kill one run as often as `aims` says, let it end, and compare."""
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
    """What a run that was killed has other than one that was not."""
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
    # Same files, but for TensorBoard's, which bear times; nothing half written is left.
    ours, others = (
        sorted(str(path.relative_to(each)) for path in each.rglob("*") if "tensorboard" not in str(path))
        for each in (run, whole)
    )
    found += [f"file {name}" for name in sorted(set(ours) ^ set(others))]
    return found


def _history(run: Path) -> list[dict[str, str]]:
    with open(run / "history.csv", newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def campaign(folder: Path, num_kills: int, seed: int, table: Path, at_least: int = 5) -> list[Outcome]:
    """Kill runs of all variants until there are `num_kills` kills, and `at_least` in each phase aimed at.

    A run is killed three times in the phases hit least so far, and three times uniformly, as far as it gets; a moment
    drawn behind its end ends it. What is known so far is written to `table` after each run.
    """
    rng = random.Random(seed)
    (folder / "tiny.toml").write_text(TINY)
    flags = {name: ("--config", str(folder / "tiny.toml"), *SAMPLE, *more) for name, more in VARIANTS.items()}
    wholes: dict[str, Whole] = {}
    for number, variant in enumerate(VARIANTS):
        wholes[variant] = run_whole(folder / f"whole-{number}", flags[variant])
        print(f"{variant}: {wholes[variant].seconds:.1f} s without a kill", flush=True)
        last = json.loads((wholes[variant].folder / "RUN" / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["epoch"] == 3, f"{variant}: ended after epoch {last['epoch']}"  # by its length or early
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
        # In the order in which they come, or the run would never get that far.
        targets = sorted(sorted(AIMED_AT, key=lambda phase: hits[phase])[:3], key=AIMED_AT.index)
        aims = [aim for target in targets for aim in rng.sample([target, "uniform"], 2)]
        outcome = run_killed(folder / f"run-{number}", variant, flags[variant], aims, wholes[variant], rng)
        outcomes.append(outcome)
        write_table(table, outcomes)
        print(f"{variant}: {', '.join(outcome.differences) or 'nothing lost'}", flush=True)
        if not outcome.differences:
            shutil.rmtree(folder / f"run-{number}")
    return outcomes


def describe(outcomes: list[Outcome]) -> str:
    """The table: kills by phase and variant, those before the first checkpoint apart, and what was lost."""
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
        f"{len(outcomes)} runs, {lost} of them lost anything"
    )
    lines += [f"LOST {each.variant}: {', '.join(each.differences)}" for each in outcomes if each.differences]
    return "\n".join(lines)


def write_table(path: Path, outcomes: list[Outcome]) -> None:
    path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill runs of the sample and see what is lost.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--table", type=Path, default=Path("kills.json"), help="where every kill is written, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tf_mlm-kills-", ignore_cleanup_errors=True) as folder:
        outcomes = campaign(Path(folder), arguments.kills, arguments.seed, arguments.table)
    print(describe(outcomes))
    return any(outcome.differences for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
