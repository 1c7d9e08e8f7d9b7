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
from tf_mlm.run.events import finite_or_none


@dataclass(frozen=True)
class RepeatedRuns:
    """The validation metrics of several runs at their best epochs.

    Attributes:
        objective: a value of `objective.name`.
        values: one value per run, by name of the metric; None where it is not finite.
    """

    objective: str
    runs: list[str]
    values: dict[str, list[float | None]]

    def mean(self, name: str) -> float | None:
        """The mean of the finite values of a metric; None if there are none."""
        finite = self._finite(name)
        return fmean(finite) if finite else None

    def deviation(self, name: str) -> float | None:
        """The standard deviation (n - 1) of the finite values of a metric; None for fewer than two."""
        finite = self._finite(name)
        return stdev(finite) if len(finite) > 1 else None

    def _finite(self, name: str) -> list[float]:
        return [value for value in self.values[name] if value is not None]

    def describe(self) -> str:
        """Mean and standard deviation of each metric, as lines of text."""
        lines = [f"{len(self.runs)} runs at their best epochs: mean ± standard deviation"]
        for metric in metrics_of(self.objective):
            mean, deviation = metric.show(self.mean(metric.name)), metric.show(self.deviation(metric.name))
            lines.append(f"  {metric.title:<26}  {mean} ± {deviation}")
        return "\n".join(lines)


def summarize(paths: Sequence[Path]) -> RepeatedRuns:
    """The results of finished runs.

    Args:
        paths: run directories with the same objective.
    """
    objective = load_config(paths[0] / "config.toml").objective.name
    best = [RunDirectory(path).read_events().best for path in paths]
    values = {
        metric.name: [finite_or_none((event.validation or {}).get(metric.name)) if event else None for event in best]
        for metric in metrics_of(objective)
    }
    return RepeatedRuns(objective, [path.name for path in paths], values)


def write_summary(path: Path, summary: RepeatedRuns) -> None:
    """Write values, mean and standard deviation of each metric as JSON."""
    metrics = {
        name: {"mean": summary.mean(name), "standard_deviation": summary.deviation(name), "values": values}
        for name, values in summary.values.items()
    }
    write_atomically(path, dump_json({"runs": summary.runs, "metrics": metrics}) + "\n")
