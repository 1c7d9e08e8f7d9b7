"""The plot of a breakdown: the loss of each row, one color for each model."""

import io
import warnings

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tf_mlm.inference.breakdown import BASELINE, MODEL, Breakdown
from tf_mlm.model.metrics import LOSS

_COLORS = {MODEL: "#D55E00", BASELINE: "#0072B2"}
_TITLES = {MODEL: "model", BASELINE: "baseline"}
_LINE_HEIGHT = 0.235  # inches
_NAME_LENGTH = 50  # characters of a model's name
_Line = tuple[str, dict[str, float], dict[str, float]]
"""Name of a row, the loss by model, and its deviation by model. A heading has no losses."""


def plot_breakdown(breakdown: Breakdown) -> bytes:
    """The loss of each group of tokens, and of the listed tokens, as png (2000 pixels wide).

    An error bar is ± one standard deviation over the draws of the masks.
    """
    groups: list[_Line] = []
    for number, group in enumerate(breakdown.groups):
        if number:
            groups.append((group.title, {}, {}))
        for row in group.rows:
            scores = {key: row.scores[key][LOSS.name] for key in breakdown.models}
            values = {key: score.value for key, score in scores.items()}
            groups.append((row.name, values, {key: score.deviation or 0.0 for key, score in scores.items()}))
    tokens: list[_Line] = []
    for title, rows in breakdown.token_tables.items():
        tokens.append((f"{title}{'' if rows else ': none'}", {}, {}))
        tokens += [(row.token, {key: row.losses[key] for key in breakdown.models}, {}) for row in rows]
    num_lines = max(len(groups), len(tokens))
    figure = Figure(figsize=(10, 1.2 + _LINE_HEIGHT * num_lines), dpi=200, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1, 0.8))
    _draw(left, groups, num_lines)
    _draw(right, tokens, num_lines)
    if breakdown.num_draws > 1:
        left.set_xlabel(f"{left.get_xlabel()}; bars: ± standard deviation over {breakdown.num_draws} draws")
    handles = []
    for key, name in breakdown.models.items():
        title = f"{_TITLES[key]}: {name if len(name) <= _NAME_LENGTH else f'…{name[1 - _NAME_LENGTH :]}'}"
        handles += left.plot([], [], "o", color=_COLORS[key], label=title.replace("$", r"\$"))
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # matplotlib's font lacks some scripts and draws a box
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, lines: list[_Line], num_lines: int) -> None:
    for y, (_, losses, deviations) in enumerate(lines):
        if not losses:
            continue
        axes.plot([min(losses.values()), max(losses.values())], [y, y], color="#BBBBBB", linewidth=1.5, zorder=1)
        for key, loss in reversed(losses.items()):
            xerr = deviations.get(key) or None
            axes.errorbar(loss, y, xerr=xerr, fmt="o", color=_COLORS[key], markersize=5, zorder=2, clip_on=False)
        axes.annotate(
            " → ".join(f"{losses[key]:.2f}" for key in (BASELINE, MODEL) if key in losses),
            (max(loss + deviations.get(key, 0.0) for key, loss in losses.items()), y),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(lines)), [name.replace("$", r"\$") for name, *_ in lines])
    for label, (_, losses, _) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontsize(8.5)
        label.set_fontweight("normal" if losses else "bold")
    axes.set_ylim(num_lines - 0.4, -0.6)
    greatest = max((max(losses.values()) for _, losses, _ in lines if losses), default=1.0)
    axes.set_xlim(0, 1.25 * greatest)  # leaves space for the numbers
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel(LOSS.title.lower(), fontsize=9)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
