"""Summarizes runs that differ only in their seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from tf_mlm.atomic_files import write_atomically
from tf_mlm.config import load_config
from tf_mlm.json_text import dump_json
from tf_mlm.model.metrics import metrics_of
from tf_mlm.run.directory import RunDirectory


@dataclass(frozen=True)
class RepeatedRuns:
    """The validation metrics of several runs at their best epochs.

    Attributes:
        objective: a value of `objective.name`.
        values: one value per run, by name of the metric.
    """

    objective: str
    runs: list[str]
    values: dict[str, list[float]]

    def describe(self) -> str:
        """Mean and standard deviation of each metric, as lines of text."""
        lines = [f"{len(self.runs)} runs at their best epochs: mean ± standard deviation"]
        for metric in metrics_of(self.objective):
            values = self.values[metric.name]
            lines.append(f"  {metric.title:<26}  {metric.show(fmean(values))} ± {metric.show(_deviation(values))}")
        return "\n".join(lines)


def summarize(paths: Sequence[Path]) -> RepeatedRuns:
    """The results of finished runs.

    Args:
        paths: run directories with the same objective.
    """
    objective = load_config(paths[0] / "config.toml").objective.name
    best = [RunDirectory(path).read_events().best for path in paths]
    values = {
        metric.name: [float((event.validation or {}).get(metric.name) or 0.0) if event else 0.0 for event in best]
        for metric in metrics_of(objective)
    }
    return RepeatedRuns(objective, [path.name for path in paths], values)


def write_summary(path: Path, summary: RepeatedRuns) -> None:
    """Write values, mean and standard deviation of each metric as JSON."""
    metrics = {
        name: {"mean": fmean(values), "standard_deviation": _deviation(values), "values": values}
        for name, values in summary.values.items()
    }
    write_atomically(path, dump_json({"runs": summary.runs, "metrics": metrics}) + "\n")


def _deviation(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
