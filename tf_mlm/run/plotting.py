"""The loss curve of a run, drawn from the events of metrics.jsonl.

matplotlib's object interface alone: no pyplot, so no window, no global figure, and any thread may draw.
"""

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from tf_mlm.run.events import Event, Events

# Okabe and Ito's colours, told apart by colour-blind readers and in grey.
_TRAINING, _VALIDATION, _RATE, _REFERENCE = "#0072B2", "#D55E00", "#009E73", "#444444"
_HALO = [withStroke(linewidth=3, foreground="white")]  # text stays legible where it meets a curve
_LOG_10 = math.log(10)
_DIGITS = ([1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1])

# Else the ids inside an svg are random, and the same events would not give the same bytes.
matplotlib.rcParams["svg.hashsalt"] = "tf_mlm"


def plot_loss(events: Events, title: str) -> dict[str, bytes]:
    """The curve as `png` (1600 × 1040 pixels, made to be shown 800 wide) and `svg`.

    Each training loss is a mean: that of an epoch is drawn at the middle of the epoch, the validation loss at its end.
    The losses of the epochs set the height; what would squeeze them is named at the upper edge instead.
    Losses may be None or not finite: the curves are interrupted there and a cross marks the place.

    Args:
        events: the objects of metrics.jsonl in order; any part of a run, even none.
        title: one line; it is cut where it is longer than the figure is wide.
    """
    figure = Figure(figsize=(8, 5.2), dpi=200, layout="constrained", facecolor="white")
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    title = " ".join(title.split())
    title = title if len(title) <= 72 else f"{title[:71]}…"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    _draw_losses(loss_axes, events)
    _draw_rate(rate_axes, events)
    for axes in (loss_axes, rate_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
    last = max(_epochs_done(events, events), default=0) or 1
    rate_axes.set_xlim(-0.015 * last, 1.015 * last)
    rate_axes.xaxis.set_major_locator(MaxNLocator(nbins=11, integer=last >= 2))
    rate_axes.set_xlabel("epoch", fontsize=10)
    figure.align_ylabels()

    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
        files[kind] = buffer.getvalue()
    return files


def loss_limits(events: Events) -> tuple[float, float]:
    """The lowest and the highest loss to show.

    From the third epoch on these are the losses of the epochs, and of the references and lower steps, from the nearest
    on, those that leave them 45 % of the height. Before, everything is shown: there is no other shape to read.
    A loss half as high again as the references has diverged: its curve leaves the figure, and the rest can be read.
    """
    start, epochs = [events.start] if events.start else [], events.epochs
    steps = _finite(_numbers(events.steps, "loss"))
    losses = _finite(_numbers(epochs, "loss"), _numbers(epochs, "val_loss"))
    references = _finite(_numbers(start, "val_loss"), _numbers(start, "unigram_entropy"))
    if len(epochs) < 3 or not len(losses):
        losses = _finite(losses, references, steps)
    if len(references):
        losses = losses[losses <= 1.5 * references.max()]
    if not len(losses):
        losses = references if len(references) else np.array([0.0, 1.0])
    low, high = float(losses.min()), float(losses.max())
    span = max(high - low, 0.05)
    others = [*references.tolist(), *steps[steps < low].tolist()]
    for other in sorted(others, key=lambda loss: max(loss - high, low - loss)):
        if max(high, other) - min(low, other) <= span / 0.45:
            low, high = min(low, other), max(high, other)
    return low, high


def perplexity_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round perplexities between two losses, as (loss, label), none nearer to another than 1/9 of the axis."""
    gap = (high - low) / 9
    low, high = max(low, 0.0), min(high, 600.0)  # e^600 is still a float, and more than a reader asks for
    if high - low < 1:  # within a factor of e, even steps stay apart
        even = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
        perplexities = list(even.tick_values(math.exp(low), math.exp(high)))
    else:
        apart = [digits for digits in _DIGITS if min(b / a for a, b in pairwise([*digits, 10])) >= math.exp(gap)]
        decades = range(int(low / _LOG_10), math.ceil(high / _LOG_10) + 1, math.ceil(gap / _LOG_10))
        perplexities = [digit * 10.0**decade for decade in decades for digit in (apart or [[1]])[0]]
    return [
        (math.log(perplexity), f"{perplexity:,.6g}" if perplexity < 1e6 else f"{perplexity:.0e}")
        for perplexity in perplexities
        if math.exp(low) <= perplexity <= math.exp(high)
    ]


def _draw_losses(axes: Axes, events: Events) -> None:
    start, steps, epochs = [events.start] if events.start else [], events.steps, events.epochs
    ends = _epochs_done(epochs, events)
    middles = (ends + np.concatenate([[0.0], ends])[:-1]) / 2
    marker = "o" if len(epochs) <= 40 else ""
    _draw_curve(
        axes,
        _epochs_done(steps, events),
        _numbers(steps, "loss"),
        "training, each logged step",
        color=_TRAINING,
        alpha=0.35,
        linewidth=1,
    )
    _draw_curve(
        axes,
        middles,
        _numbers(epochs, "loss"),
        "training, mean of each epoch",
        color=_TRAINING,
        marker=marker,
        linewidth=2,
    )
    _draw_curve(
        axes,
        _epochs_done(start + epochs, events),
        _numbers(start + epochs, "val_loss"),
        "validation",
        color=_VALIDATION,
        marker=marker,
        linewidth=2,
    )

    lost = [
        event
        for name in ("loss", "val_loss")
        for event in steps + epochs
        if np.isnan(_numbers([event], name)[0]) and not (name == "val_loss" and event in steps)
    ]
    axes.plot(
        _epochs_done(lost, events),
        np.full(len(lost), 0.03),
        "x",
        color="black",
        transform=axes.get_xaxis_transform(),
        label="loss not finite" if lost else None,
    )

    low, high = loss_limits(events)
    references = [
        (float(loss), name)
        for key, name in (("val_loss", "before training"), ("unigram_entropy", "unigram entropy of the corpus"))
        for loss in _finite(_numbers(start, key))
    ]
    above = sorted((reference for reference in references if reference[0] > high), reverse=True)
    span = max(high - low, 0.05)
    # Room below for the label of the best epoch, above for the names of what lies beyond.
    best = events.best if events.epochs else None
    bottom = min(low - 0.04 * span, best.val_loss - 0.14 * span if best else low)
    axes.set_ylim(bottom, high + (0.08 + 0.065 * len(above)) * span)
    _draw_references(axes, sorted(reference for reference in references if reference[0] <= high), span)
    axes.text(
        0.995,
        0.985,
        "\n".join(f"↑ {name} {loss:.2f}" for loss, name in above),
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=9,
        color=_REFERENCE,
        path_effects=_HALO,
    )
    if best:
        _draw_best(axes, best, events)

    axes.set_ylabel("loss (nats per masked token)", fontsize=10)
    perplexity = axes.secondary_yaxis("right")
    ticks = perplexity_ticks(*axes.get_ylim())
    perplexity.set_yticks([loss for loss, _ in ticks], [label for _, label in ticks])
    perplexity.tick_params(labelsize=9)
    perplexity.set_ylabel("perplexity", fontsize=10)
    perplexity.spines["right"].set_visible(False)
    # Above the axes, where it covers nothing; the handles are named since none of them is a warning otherwise.
    axes.legend(
        handles=axes.get_legend_handles_labels()[0],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        ncols=4,
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=1.6,
    )


def _draw_curve(axes: Axes, x: np.ndarray, loss: np.ndarray, label: str, marker: str = "", **style: Any) -> None:
    if len(x) == 1:  # a line through one point shows nothing
        marker = "o"
    axes.plot(x, loss, label=label if len(x) else None, marker=marker, markersize=4.5, **style)


def _draw_references(axes: Axes, references: list[tuple[float, str]], span: float) -> None:
    """Dashed lines, named at their right end, where the curves have come down from them."""
    for index, (loss, name) in enumerate(references):
        axes.axhline(loss, color=_REFERENCE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        crowded = any(higher - loss < 0.08 * span for higher, _ in references[index + 1 :])
        axes.annotate(
            f"{name} {loss:.2f}",
            (0.995, loss),
            (0, -3 if crowded else 3),
            fontsize=9,
            color=_REFERENCE,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top" if crowded else "bottom",
            path_effects=_HALO,
        )


def _draw_best(axes: Axes, best: Any, events: Events) -> None:
    x, loss = float(_epochs_done([best], events)[0]), best.val_loss
    share = x / float(_epochs_done(events, events).max())
    # Nothing of the validation lies below its best; where the training does, the label goes above.
    below = not _numbers([best], "loss")[0] < loss
    axes.plot([x], [loss], "o", color="white", markeredgecolor=_VALIDATION, markeredgewidth=2, markersize=9, zorder=5)
    axes.annotate(
        f"best {loss:.2f}, epoch {best.epoch}",
        (x, loss),
        (0, -9 if below else 9),
        fontsize=10,
        textcoords="offset points",
        ha="left" if share < 0.15 else "right" if share > 0.85 else "center",
        va="top" if below else "bottom",
        color=_VALIDATION,
        fontweight="bold",
        path_effects=_HALO,
        zorder=6,
    )


def _draw_rate(axes: Axes, events: Events) -> None:
    rated = sorted([*events.steps, *events.epochs], key=lambda event: event.step)
    rate = _numbers(rated, "learning_rate")
    x = _epochs_done(rated, events)
    axes.fill_between(x, rate, color=_RATE, alpha=0.15, linewidth=0)
    axes.plot(x, rate, color=_RATE, linewidth=1.5, marker="o" if len(x) == 1 else "", markersize=4)
    axes.set_ylabel("learning\nrate", fontsize=9)
    peak = max(_finite(rate), default=0.0)
    axes.set_yticks(*zip(*{0.0: "0", peak: f"{peak:.2g}".replace("e-0", "e-")}.items(), strict=True))
    axes.set_ylim(0, 1.15 * peak or 1)


def _numbers(events: Sequence[Event], name: str) -> np.ndarray:
    """The values of one name; a missing, None or infinite one is nan, where matplotlib interrupts a line."""
    values = np.array([getattr(event, name, None) for event in events], dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _finite(*values: np.ndarray) -> np.ndarray:
    joined = np.concatenate(values)
    return joined[np.isfinite(joined)]


def _epochs_done(some: Sequence[Event], events: Events) -> np.ndarray:
    """The steps of some of the events in epochs; steps themselves where no event tells the length of an epoch."""
    return _numbers(some, "step") / (events.steps_per_epoch or 1)
