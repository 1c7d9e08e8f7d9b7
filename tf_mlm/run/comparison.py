"""Compares runs: the settings that differ, their results, and their validation curves."""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tf_mlm.config import Config, load_config, setting_fields
from tf_mlm.errors import Refused
from tf_mlm.hub import Source
from tf_mlm.model.metrics import LOSS, find_metric
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.events import Events
from tf_mlm.run.plotting import as_png
from tf_mlm.run.probe_results import ProbeResults, load_probe

# With the text, these settings determine the validation loss of a model.
_VALIDATION_SETTINGS = (
    "objective.name",
    "data.sequence_length",
    "data.num_validation_sequences",
    "data.line_by_line",
    "data.overflow",
    "data.isolate_documents",
    "masking.mask_replace_prob",
    "masking.random_replace_prob",
    "training.seed",
)
_PROBE = "probe accuracy,"  # followed by the number of labels
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        name: as the user gave it.
        environment: the content of environment.json.
        probe: the results of `tf-mlm probe`; None if the run has not been probed.
    """

    name: str
    config: Config
    environment: dict[str, Any]
    events: Events
    probe: ProbeResults | None = None

    @classmethod
    def load(cls, name: str) -> "ComparedRun":
        """Read the run in the directory `name`.

        Raises:
            Refused: it is not a run directory, or it has not begun to train.
        """
        run = RunDirectory(Path(name))
        if not run.config_path.is_file():
            raise Refused(f"{name}: is not a run directory (it has no config.toml); pass a run directory")
        events = run.read_events()
        if events.start is None:
            raise Refused(f"{name}: this run has not begun to train; wait for its first validation")
        environment = json.loads(run.environment_path.read_text(encoding="utf-8"))
        return cls(name, load_config(run.config_path), environment, events, load_probe(run.path))

    @property
    def settings(self) -> dict[str, Any]:
        """Value by dotted name."""
        sections = asdict(self.config)
        return {name: sections[name.split(".")[0]][name.split(".")[1]] for name in setting_fields()}

    @property
    def validation_data(self) -> tuple[str, float | None]:
        """What identifies the validation text and its tokens."""
        start = self.events.start
        parts = str(self.environment.get("data", {}).get("fingerprint", "")).split("-")  # training, validation, others
        fingerprint = parts[1] if len(parts) > 1 else ""
        return fingerprint, start.unigram_entropy if start else None

    @property
    def validates_on_a_whole_split(self) -> bool:
        """Whether the validation is the same for every seed: of labels, which have no masks, and of all documents."""
        data = self.config.data
        is_held_out = self.environment.get("data", {}).get("held_out", True)
        return self.config.objective.name != "masked" and not data.num_validation_sequences and not is_held_out

    @property
    def seconds(self) -> float:
        """Time spent in training and validation so far."""
        end = self.events.end
        return end.seconds if end else sum(epoch.seconds or 0.0 for epoch in self.events.epochs)

    def row(self) -> dict[str, Any]:
        """The results, by name; None where there is none yet."""
        best, epochs = self.events.best, self.events.epochs
        speeds = [epoch.tokens_per_second for epoch in epochs if epoch.tokens_per_second]
        validation = (best.validation if best else None) or {}
        return {
            "run": self.name,
            "state": "finished" if self.events.end else "diverged" if self.events.has_diverged else "unfinished",
            "best epoch": best.epoch if best else None,
            **{f"best val_{name}": validation.get(name) for name in validation or [LOSS.name]},
            f"last val_{LOSS.name}": epochs[-1].val_loss if epochs else None,
            "steps": epochs[-1].step if epochs else 0,
            "seconds": self.seconds,
            "tokens/s": float(np.median(speeds)) if speeds else None,
            **{
                f"{_PROBE} {size.name} labels per class": size.scores["adapted"]["accuracy"].mean
                for size in (self.probe.sizes if self.probe else ())
            },
        }


def differing_settings(runs: list[ComparedRun]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs: values by name, in the order of the runs."""
    settings = [run.settings for run in runs]
    return {
        name: [each[name] for each in settings]
        for name in setting_fields()
        if len({repr(s[name]) for s in settings}) > 1
    }


def why_not_comparable(runs: list[ComparedRun]) -> str:
    """Why the validation losses measure different things, as a clause; "" where they can be compared."""
    reasons = [name for name in differing_settings(runs) if name in _VALIDATION_SETTINGS]
    if all(run.validates_on_a_whole_split for run in runs):
        reasons = [name for name in reasons if name != "training.seed"]
    if len({run.validation_data for run in runs}) > 1:
        reasons.insert(0, "the text or its tokens")
    return ", ".join(reasons)


def why_probes_not_comparable(runs: list[ComparedRun]) -> str:
    """The attributes in which the probes of the runs differ, as a clause; "" where they can be compared."""
    probes = [run.probe for run in runs if run.probe]
    names = ("labels", "num_train_documents", "num_test_documents", "pooling", "sequence_length", "seed")
    reasons = [name for name in names if len({repr(getattr(probe, name)) for probe in probes}) > 1]
    datasets = {Source.of(probe.dataset).absolute_path or probe.dataset for probe in probes}
    return ", ".join((["dataset"] if len(datasets) > 1 else []) + reasons)


def describe_comparison(runs: list[ComparedRun]) -> str:
    """The settings that differ and the results, one column for each run, in lines."""
    rows = [["", *(run.name for run in runs)]]
    rows += [[name, *(_show(name, value) for value in values)] for name, values in differing_settings(runs).items()]
    results = [run.row() for run in runs]
    names = dict.fromkeys(name for result in results for name in list(result)[1:])
    for name in names:
        rows.append([name, *(_show_result(name, result.get(name)) for result in results)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if reason := why_not_comparable(runs):
        lines.append(f"warning: the validation losses are not comparable, because these differ: {reason}")
    if reason := why_probes_not_comparable(runs):
        lines.append(f"warning: the probes are not comparable, because these differ: {reason}")
    return "\n".join(lines)


def plot_comparison(runs: list[ComparedRun]) -> bytes:
    """Validation loss over steps and over time, as png (1600 x 880 pixels)."""
    figure = Figure(figsize=(8, 4.4), dpi=200, layout="constrained", facecolor="white")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for run, color in zip(runs, itertools.cycle(_COLORS), strict=False):
        events = [run.events.start, *run.events.epochs]
        losses = [np.nan if event is None or event.val_loss is None else event.val_loss for event in events]
        steps = [event.step if event else 0 for event in events]
        minutes = np.cumsum([0.0, *(epoch.seconds or 0.0 for epoch in run.events.epochs)]) / 60
        for axes, x in ((by_step, steps), (by_time, minutes)):
            axes.plot(x, losses, "o-", color=color, markersize=3.5, linewidth=1.8, label=Path(run.name).resolve().name)
    for axes, label in ((by_step, "step"), (by_time, "minutes of training and validation")):
        axes.set_xlabel(label, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.tick_params(labelsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    unit = " per masked token" if runs[0].config.objective.name == "masked" else ""
    by_step.set_ylabel(f"validation loss (nats{unit})", fontsize=10)
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    if why_not_comparable(runs):
        warning = "not comparable: the runs have different validation data or masks"
        figure.supxlabel(warning, fontsize=9, color="#B00020")
    return as_png(figure)


def _show(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if name == "training.example_sentences":
        return f"{len(value)} sentences"
    return ", ".join(value) if isinstance(value, tuple) else str(value) or "''"


def _show_result(name: str, value: Any) -> str:
    if metric := find_metric(name.rpartition(" val_")[2]):
        return metric.show(value)
    if name.startswith(_PROBE):
        return "–" if value is None else f"{value:.2%}"
    if name == "seconds":
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    return "–" if value is None else f"{value:,.0f}" if isinstance(value, int | float) else str(value)
