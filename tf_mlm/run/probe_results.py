"""The results of a probe: table, plot, JSON, and the section of the model card."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import TypeAdapter, ValidationError

from tf_mlm.atomic_files import write_atomically
from tf_mlm.errors import Refused
from tf_mlm.hub import Source
from tf_mlm.json_text import dump_json
from tf_mlm.run.plotting import as_png

FILE = "probe.json"
_HEADING = "## Probe"
_COLORS = {"adapted": "#D55E00", "starting": "#0072B2", "tf-idf": "#009E73", "majority": "#444444"}
_TITLES = {
    "adapted": "adapted model",
    "starting": "starting model",
    "tf-idf": "TF-IDF (control)",
    "majority": "majority class (control)",
}
_ALONE = "model"  # title of `adapted` if there is no starting model
_METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}


@dataclass(frozen=True)
class Score:
    """A metric of a method at one number of labels.

    Attributes:
        mean: mean over the draws; `deviation` is the standard deviation.
        values: one value per draw.
    """

    mean: float
    deviation: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        return cls(
            float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, list(map(float, values))
        )


@dataclass(frozen=True)
class Difference:
    """Adapted minus starting model, on the same draws and test documents.

    Attributes:
        low: lower end of the 95% bootstrap interval over draws and test documents; likewise `high`.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ProbedSize:
    """The results at one number of labels.

    Attributes:
        labels_per_class: None for all labels.
        num_labels: number of labeled training documents.
        num_draws: number of random draws of these documents.
        scores: by name of the method (adapted, starting, tf-idf, majority), then by name of the metric.
        differences: by name of the metric; empty if there is no starting model.
    """

    labels_per_class: int | None
    num_labels: int
    num_draws: int
    scores: dict[str, dict[str, Score]]
    differences: dict[str, Difference]

    @property
    def name(self) -> str:
        return "all" if self.labels_per_class is None else f"{self.labels_per_class:,}"


@dataclass(frozen=True)
class ProbeResults:
    """A probe of one or two models.

    Attributes:
        models: name of the model of each method `adapted` and `starting`.
        dataset: the labeled data.
        pooling: `mean` or `cls`.
        skipped: sizes without enough labels, as sentences.
        num_in_training: test documents whose text the adapted model was trained on, without labels; None if unknown.
    """

    models: dict[str, str]
    dataset: str
    labels: list[str]
    num_train_documents: int
    num_test_documents: int
    sequence_length: int
    pooling: str
    precision: str
    seed: int
    sizes: list[ProbedSize]
    skipped: list[str]
    num_in_training: int | None = None

    def as_json(self) -> str:
        return dump_json(asdict(self)) + "\n"

    def title(self, method: str) -> str:
        """Name of a method in tables and plots."""
        return _ALONE if method == "adapted" and "starting" not in self.models else _TITLES[method]

    def describe_input(self) -> str:
        """A sentence that says how much of each text the methods read."""
        models = "Both models read" if "starting" in self.models else "The model reads"
        return f"{models} the first {self.sequence_length} tokens of each text; TF-IDF reads the whole text."

    def describe(self) -> str:
        """The table, as lines of text."""
        header, *rows = _rows(self)
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
        lines = [
            f"probe of {self.dataset}: {self.num_train_documents:,} training and {self.num_test_documents:,} test "
            f"documents, labels {', '.join(self.labels[:8])}{' …' if len(self.labels) > 8 else ''}"
        ]
        lines += [f"{self.title(method)}: {model}" for method, model in self.models.items()]
        lines.append(self.describe_input())
        for row in (header, *rows):
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        lines += self.skipped
        if self.num_in_training:
            lines.append(f"warning: {self.num_in_training:,} test documents are in the training text of the run")
        if "starting" in self.models:
            lines.append(
                "difference: adapted - starting, with its 95% bootstrap interval over draws and test documents"
            )
        return "\n".join(lines)


def load_probe(path: Path) -> ProbeResults | None:
    """The results in a run directory; None if it has not been probed.

    Raises:
        Refused: the file is damaged.
    """
    if not (path / FILE).exists():
        return None
    try:
        return TypeAdapter(ProbeResults).validate_json((path / FILE).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(f"{path / FILE}: is damaged: {place}: {first['msg']}; run tf-mlm probe again") from None


def write_probe(results: ProbeResults, directory: Path) -> None:
    """Write probe.json and probe.png, and the section of the model card of a run directory."""
    write_atomically(directory / "probe.png", plot_probe(results))
    write_atomically(directory / FILE, results.as_json())
    card = directory / "README.md"
    if card.exists() and (directory / "config.toml").exists():  # a run directory, not another project
        write_atomically(card, with_probe(card.read_text(encoding="utf-8"), results))


def with_probe(card: str, results: ProbeResults) -> str:
    """The model card with the section of the probe, which replaces an earlier one."""
    sections = [section for section in card.split("\n\n## ") if not section.startswith("Probe\n")]
    place = next((number for number, section in enumerate(sections) if section.startswith("Use and limits")), None)
    sections.insert(len(sections) if place is None else place, probe_section(results).removeprefix("## "))
    return "\n\n## ".join(section.rstrip("\n") for section in sections) + "\n"


def probe_section(results: ProbeResults) -> str:
    """The section of the model card, as Markdown."""
    header, *rows = _rows(results)
    table = "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
    source = Source.of(results.dataset)
    dataset = source.path.name if source.path else source.name  # the card is read on other machines
    differences = (
        "The difference is adapted - starting on the same draws, with its 95% bootstrap interval over draws and test "
        "documents. "
        if "starting" in results.models
        else ""
    )
    seen = f"{results.num_in_training:,} test documents are in the training text. " if results.num_in_training else ""
    return f"""{_HEADING}

Logistic regression on frozen features ({results.pooling} pooling of the last hidden states) of the labeled texts of
{dataset}: {results.num_test_documents:,} test documents, mean ± standard deviation over random draws of the labels.
{results.describe_input()} {differences}{seen}Computed by `tf-mlm probe`.

![Accuracy over the number of labels](probe.png)

{table}"""


def plot_probe(results: ProbeResults) -> bytes:
    """Accuracy over the number of labels per class, as png (1600 x 1040 pixels)."""
    figure = Figure(figsize=(8, 5.2), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots()
    num_classes = len(results.labels)
    x = [size.labels_per_class or size.num_labels / num_classes for size in results.sizes]
    methods = [method for method in _COLORS if method in results.sizes[0].scores]
    for method in methods:
        scores = [size.scores[method]["accuracy"] for size in results.sizes]
        means, deviations = np.array([s.mean for s in scores]), np.array([s.deviation for s in scores])
        is_model = method in results.models
        style: dict[str, Any] = (
            {"linewidth": 2, "marker": "o"} if is_model else {"linewidth": 1.3, "linestyle": (0, (4, 3))}
        )
        axes.plot(x, means, color=_COLORS[method], label=results.title(method), markersize=4.5, **style)
        if method != "majority":
            axes.fill_between(x, means - deviations, means + deviations, color=_COLORS[method], alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(x, [size.name if size.labels_per_class else f"all\n({x[-1]:,.0f})" for size in results.sizes])
    axes.minorticks_off()
    axes.set_xlabel("labels per class (logarithmic); bands: ± standard deviation over the draws", fontsize=10)
    axes.set_ylabel(f"accuracy on {results.num_test_documents:,} test documents", fontsize=10)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=9)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return as_png(figure)


def _rows(results: ProbeResults) -> list[list[str]]:
    """The cells of the table, header first."""
    methods = [method for method in _COLORS if method in results.sizes[0].scores]
    names = [_ALONE if results.title(method) == _ALONE else method for method in methods]
    rows = [["metric", "labels per class", *names, *(["difference"] if "starting" in results.models else [])]]
    for metric, title in _METRICS.items():
        for size in results.sizes:
            row = [title, size.name, *(_show(size.scores[method][metric], size.num_draws) for method in methods)]
            if metric in size.differences:
                found = size.differences[metric]
                row.append(f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]")
            rows.append(row)
    return rows


def _show(score: Score, num_draws: int) -> str:
    return f"{100 * score.mean:.2f}" + (f" ± {100 * score.deviation:.2f}" if num_draws > 1 else "")
