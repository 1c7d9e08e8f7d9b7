"""The loss curve of a run, drawn from the events of metrics.jsonl.

Only matplotlib's object interface is used: without pyplot there is no global figure, and any thread may draw.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, BboxBase

from tf_mlm.model.metrics import LOSS, PERPLEXITY, Metric, find_metric
from tf_mlm.run.events import EpochEvent, Event, Events, StartEvent

# Okabe and Ito's colors, which color-blind readers can tell apart, also in gray.
_TRAINING, _VALIDATION, _RATE, _SCORE, _REFERENCE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#444444"
_HALO = [withStroke(linewidth=3, foreground="white")]  # keeps text readable on a curve
_LABEL_MARGIN = 5  # pixels around a label
_LOG_10 = math.log(10)
_DIGITS = ([1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1])

# A fixed salt makes the ids in an svg, and so its bytes, reproducible.
matplotlib.rcParams["svg.hashsalt"] = "tf_mlm"


def as_png(figure: Figure) -> bytes:
    """The figure as png at 200 dots per inch; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def plot_loss(events: Events, title: str) -> dict[str, bytes]:
    """The curve as `png` (1600 x 1040 pixels, made to be shown 800 wide) and `svg`.

    A training loss is a mean and is drawn at the middle of its interval; a validation loss at the end of its epoch.
    The losses of the epochs set the limits of the axis; values outside are named at the upper edge.
    A curve is interrupted at a loss that is None or not finite, and a cross marks the position.

    Args:
        events: the events of a run, possibly incomplete or empty.
        title: one line; shortened if it is wider than the figure.
    """
    figure = Figure(figsize=(8, 5.2), dpi=200, layout="constrained", facecolor="white")
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    figure.suptitle(_shortened(title, 72), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    labels = _draw_losses(loss_axes, events)
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
    place_labels(figure, labels)

    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
        files[kind] = buffer.getvalue()
    return files


Place = tuple[float, float, Literal["left", "center", "right"], Literal["top", "bottom"]]


@dataclass(frozen=True)
class Label:
    """A text in the figure and its candidate positions, best first.

    Attributes:
        places: (x offset in points, y offset in points, horizontal alignment, vertical alignment).
    """

    text: Annotation
    places: tuple[Place, ...]


def place_labels(figure: Figure, labels: list[Label]) -> None:
    """Move each label to its first candidate position that covers no other label and lies inside the axes."""
    for label in labels:
        label.text.set_in_layout(False)  # the size of the axes must not depend on where the labels are
    figure.draw_without_rendering()
    placed: list[Bbox] = []
    for label in labels:
        frame = label.text.axes.bbox if label.text.axes else figure.bbox
        boxes = []
        for x, y, ha, va in label.places:
            label.text.set_position((x, y))
            label.text.set_horizontalalignment(ha)
            label.text.set_verticalalignment(va)
            box = label.text.get_window_extent().padded(_LABEL_MARGIN)
            boxes.append((_covered(box, placed) + _outside(box, frame), box, (x, y, ha, va)))
            if boxes[-1][0] == 0:
                break
        _, box, (x, y, ha, va) = min(boxes, key=lambda each: each[0])
        label.text.set_position((x, y))
        label.text.set_horizontalalignment(ha)
        label.text.set_verticalalignment(va)
        placed.append(box)


def _covered(box: Bbox, others: list[Bbox]) -> float:
    """Area of `box` that others cover, in square pixels."""
    found = [Bbox.intersection(box, other) for other in others]
    return float(sum(each.width * each.height for each in found if each is not None))


def _outside(box: Bbox, frame: BboxBase) -> float:
    inside = Bbox.intersection(box, frame)
    return float(box.width * box.height - (inside.width * inside.height if inside is not None else 0.0))


def loss_limits(events: Events) -> tuple[float, float]:
    """The limits of the loss axis.

    Before the third epoch, they include every loss. From the third epoch on, they include the losses of the epochs,
    and the references and lower step losses that leave 45 % of the height to the epochs. A loss above 1.5 times the
    references counts as diverged and is excluded, unless all losses are: its curve leaves the figure.
    """
    start, epochs = [events.start] if events.start else [], events.epochs
    steps = _finite(_numbers(events.steps, "loss"))
    losses = _finite(_numbers(epochs, "loss"), _numbers(epochs, "val_loss"), _second_losses(epochs))
    references = _finite(_numbers(start, "val_loss"), _numbers(start, "unigram_entropy"))
    if len(epochs) < 3 or not len(losses):
        losses = _finite(losses, references, steps)
    if len(references) and (losses <= 1.5 * references.max()).any():
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
    """Round perplexities between two losses, as (loss, label), at distances of at least 1/9 of the axis."""
    gap = (high - low) / 9
    low, high = max(low, 0.0), min(high, 600.0)  # e^600 does not overflow a float
    if high - low < 1:  # within a factor of e, equal steps do not overlap
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


def _draw_losses(axes: Axes, events: Events) -> list[Label]:
    """Draw the loss panel. Returns the labels that are not placed yet."""
    start, steps, epochs = [events.start] if events.start else [], events.steps, events.epochs
    marker = "o" if len(epochs) <= 40 else ""
    training_ratio, validation_ratio = _mask_ratios(events)
    _draw_curve(
        axes,
        _middles(_epochs_done(steps, events)),
        _numbers(steps, "loss"),
        f"training, steps{training_ratio}",
        color=_TRAINING,
        alpha=0.35,
        linewidth=1,
    )
    _draw_curve(
        axes,
        _middles(_epochs_done(epochs, events)),
        _numbers(epochs, "loss"),
        f"training, epochs{training_ratio}",
        color=_TRAINING,
        marker=marker,
        linewidth=2,
    )
    _draw_curve(
        axes,
        _epochs_done([*start, *epochs], events),
        _numbers([*start, *epochs], "val_loss"),
        f"validation{validation_ratio}",
        color=_VALIDATION,
        marker=marker,
        linewidth=2,
    )
    if start and start[0].second_validation:
        _draw_curve(
            axes,
            _epochs_done([*start, *epochs], events),
            _second_losses([*start, *epochs]),
            f"validation on {_shortened(start[0].second_validation_name or '', 24)}",
            color=_SCORE,
            marker=marker,
            linewidth=2,
        )
    lost = [event for event in [*steps, *epochs] if np.isnan(_numbers([event], "loss")[0])]
    lost += [event for event in epochs if event.val_loss is None]
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
    above = [(loss, f"{name} {loss:.2f}") for loss, name in references if loss > high]
    for values, name in (
        (_numbers([*steps, *epochs], "loss"), "training"),
        (_numbers(epochs, "val_loss"), "validation"),
        (_second_losses([*start, *epochs]), "second validation"),
    ):
        highest = max(_finite(values), default=high)
        if highest > high * 1.0001:
            above.append((highest, f"{name} up to {_short(highest)}"))
    span = max(high - low, 0.05)
    # Space below for the label of the best epoch, and above for the names of values outside.
    best = events.best if events.epochs else None
    if best and (best.val_loss or 0.0) < low:  # only the model before training can lie far below its epochs
        best = None
    bottom = min(low - 0.04 * span, (best.val_loss or 0.0) - 0.14 * span if best else low)
    axes.set_ylim(bottom, high + (0.08 + 0.065 * len(above)) * span)
    labels = []
    if above:
        text = axes.annotate(
            "\n".join(f"↑ {name}" for _, name in sorted(above, reverse=True)),
            (1, 1),
            (-3, -3),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            color=_REFERENCE,
            path_effects=_HALO,
        )
        labels.append(Label(text, ((-3, -3, "right", "top"),)))
    if best:
        labels.append(_draw_best(axes, best, events))
    below = [f"↓ {name} {loss:.2f}" for loss, name in references if loss < bottom]
    if below:
        text = axes.annotate(
            "\n".join(below),
            (1, 0),
            (-3, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=9,
            color=_REFERENCE,
            path_effects=_HALO,
        )
        labels.append(Label(text, tuple((-3.0 - shift, 3.0, "right", "bottom") for shift in range(0, 400, 50))))
    labels += _draw_references(axes, sorted(reference for reference in references if bottom <= reference[0] <= high))

    handles = axes.get_legend_handles_labels()[0]
    if score := _score_of(events):
        axes.set_ylabel("loss (nats)", fontsize=10)
        handles += _draw_score(axes, score, events)
    else:
        axes.set_ylabel("loss (nats per masked token)", fontsize=10)
        _draw_perplexities(axes)
    # Above the axes, where it covers nothing. The handles are passed, because matplotlib warns if there are none.
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        ncols=4,
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=1.6,
    )
    return labels


def _draw_perplexities(axes: Axes) -> None:
    """Draw an axis on the right with the perplexities of the losses."""
    perplexity = axes.secondary_yaxis("right")
    ticks = perplexity_ticks(*axes.get_ylim())
    perplexity.set_yticks([loss for loss, _ in ticks], [label for _, label in ticks])
    perplexity.tick_params(labelsize=9)
    perplexity.set_ylabel("perplexity", fontsize=10)
    perplexity.spines["right"].set_visible(False)


def _score_of(events: Events) -> Metric | None:
    """The metric that the plot of a fine-tuning run shows with the loss; None for masked language modeling."""
    names = list((events.start and events.start.validation) or ())
    return find_metric(names[-1]) if len(names) > 1 and PERPLEXITY.name not in names else None


def _draw_score(axes: Axes, score: Metric, events: Events) -> list[Any]:
    """Draw a validation metric between 0 and 1 with an axis on the right. Returns its handles for the legend."""
    validated = [*([events.start] if events.start else []), *events.epochs]
    values = np.array([(event.validation or {}).get(score.name) for event in validated], dtype=float)
    right = axes.twinx()
    marker = "s" if len(validated) <= 40 else ""
    right.plot(
        _epochs_done(validated, events),
        values,
        color=_SCORE,
        marker=marker,
        markersize=4,
        linestyle=":",
        label=score.title,
    )
    right.set_ylim(0, 1.02)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.tick_params(labelsize=9)
    right.set_ylabel(f"validation {score.title[0].lower()}{score.title[1:]}", fontsize=10)
    right.spines[["top", "right"]].set_visible(False)
    return list(right.get_legend_handles_labels()[0])


def _mask_ratios(events: Events) -> tuple[str, str]:
    """Suffixes of the labels of training and validation: the shares of masked tokens, if they differ."""
    start = events.start
    training = start.mlm_probability if start else None
    validation = start.validation_mlm_probability if start else None
    if training is None or validation is None or training == validation:
        return "", ""
    return f" ({training:.0%} masked)", f" ({validation:.0%} masked)"


def _middles(ends: np.ndarray) -> np.ndarray:
    """The middle of each interval; the first one begins at 0."""
    return (ends + np.concatenate([[0.0], ends])[:-1]) / 2


def _short(loss: float) -> str:
    return f"{loss:.2f}" if loss < 1e5 else f"{loss:.1e}"


def _draw_curve(axes: Axes, x: np.ndarray, loss: np.ndarray, label: str, marker: str = "", **style: Any) -> None:
    if len(x) == 1:  # a line through one point shows nothing
        marker = "o"
    axes.plot(x, loss, label=label if len(x) else None, marker=marker, markersize=4.5, **style)


def _draw_references(axes: Axes, references: list[tuple[float, str]]) -> list[Label]:
    """Dashed lines with their names."""
    labels = []
    for loss, name in references:
        axes.axhline(loss, color=_REFERENCE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        text = axes.annotate(
            f"{name} {loss:.2f}",
            (1, loss),
            (-3, 3),
            fontsize=9,
            color=_REFERENCE,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            path_effects=_HALO,
        )
        # First the right end, where the curves are low; then to the left, in steps of an eighth of the width.
        places: list[Place] = []
        for shift in range(0, 400, 50):
            places += [(-3 - shift, 3, "right", "bottom"), (-3 - shift, -3, "right", "top")]
        labels.append(Label(text, tuple(places)))
    return labels


def _draw_best(axes: Axes, best: StartEvent | EpochEvent, events: Events) -> Label:
    loss = best.val_loss or 0.0
    x = float(_epochs_done([best], events)[0])
    axes.plot([x], [loss], "o", color="white", markeredgecolor=_VALIDATION, markeredgewidth=2, markersize=9, zorder=5)
    text = axes.annotate(
        f"best {loss:.2f}, " + (f"epoch {best.epoch}" if best.epoch else "before training"),
        (x, loss),
        (0, -9),
        fontsize=10,
        textcoords="offset points",
        color=_VALIDATION,
        fontweight="bold",
        path_effects=_HALO,
        zorder=6,
    )
    # The validation curve is never below its best; the training curve may be.
    is_free_below = not _numbers([best], "loss")[0] < loss
    below: list[Place] = [(0, -9, "center", "top"), (-9, -9, "right", "top"), (9, -9, "left", "top")]
    above: list[Place] = [(x, -y, ha, "bottom") for x, y, ha, _ in below]
    near = [*below, *above] if is_free_below else [*above, *below]
    far: list[Place] = [(x, 2.2 * y, ha, va) for x, y, ha, va in near]
    return Label(text, (*near, *far))


def _draw_rate(axes: Axes, events: Events) -> None:
    """Draw the schedule up to the last step, or the rates of the logged steps if the run recorded no schedule."""
    rated = sorted([*events.steps, *events.epochs], key=lambda event: event.step)
    steps, rates = np.array([event.step for event in rated], float), _numbers(rated, "learning_rate")
    if events.start and events.start.schedule and rated:
        schedule = np.array(events.start.schedule, float)
        last = steps[-1]
        within = schedule[schedule[:, 0] < last]
        steps = np.append(within[:, 0], last)
        rates = np.append(within[:, 1], np.interp(last, schedule[:, 0], schedule[:, 1]))
    x = steps / (events.steps_per_epoch or 1)
    axes.fill_between(x, rates, color=_RATE, alpha=0.15, linewidth=0)
    axes.plot(x, rates, color=_RATE, linewidth=1.5, marker="o" if len(x) == 1 else "", markersize=4)
    axes.set_ylabel("learning\nrate", fontsize=9)
    peak = max(_finite(rates), default=0.0)
    axes.set_yticks(*zip(*{0.0: "0", peak: f"{peak:.2g}".replace("e-0", "e-")}.items(), strict=True))
    axes.set_ylim(0, 1.15 * peak or 1)


def _second_losses(events: Sequence[Event]) -> np.ndarray:
    """The losses on the second validation dataset; nan where there is none."""
    losses = [(event.second_validation or {}).get(LOSS.name) for event in events]
    values = np.array(losses, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _numbers(events: Sequence[Event], name: str) -> np.ndarray:
    """The values of one name; a missing, None or infinite value is nan, at which matplotlib interrupts a line."""
    values = np.array([getattr(event, name, None) for event in events], dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _finite(*values: np.ndarray) -> np.ndarray:
    joined = np.concatenate(values)
    return joined[np.isfinite(joined)]


def _epochs_done(some: Sequence[Event], events: Events) -> np.ndarray:
    """The steps of `some` events in units of epochs, or in steps if no event records the length of an epoch."""
    return _numbers(some, "step") / (events.steps_per_epoch or 1)
