"""The results of a learning rate range test: analysis of the losses, table, plot, JSON."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_mlm.json_text import dump_json
from tf_mlm.model.metrics import metrics_of
from tf_mlm.run.plotting import as_png

_LOSS, _STEEPEST, _BLOW_UP, _CONFIG = "#0072B2", "#009E73", "#D55E00", "#444444"  # Okabe and Ito
_WINDOW = 1 / 30  # share of the planned steps in an average
_CLEAR = 8.0  # standard errors; a larger change of the smoothed loss is more than noise
_REGAINED = 0.1  # the loss blows up when it has regained this share of its fall
_STOP_FACTOR = 4.0  # the test stops when the loss exceeds this multiple of its minimum


@dataclass(frozen=True)
class Curve:
    """The losses of the steps so far, at rates that grow exponentially, and what they show.

    Attributes:
        losses: float64 [steps], in nats per label; inf for an update that was skipped because its loss or gradient was
            not finite, nan for a step without labels.
        num_steps: number of planned steps, which sets the length of the averages.
    """

    losses: np.ndarray
    num_steps: int

    @cached_property
    def smoothed(self) -> np.ndarray:
        """float64 [steps]: exponential average with bias correction (Kingma and Ba 2015, section 3).

        Its mean age is a thirtieth of the planned steps. A step without a finite loss repeats the previous value, or at
        the beginning the first one.
        """
        decay = 1 - 1 / self._window
        first = self.losses[np.isfinite(self.losses)][0]
        average, weight, found = 0.0, 0.0, []
        for loss in self.losses:
            if np.isfinite(loss):
                average, weight = decay * average + (1 - decay) * loss, decay * weight + 1 - decay
            found.append(average / weight if weight else first)
        return np.array(found)

    @property
    def _window(self) -> int:
        return max(round(_WINDOW * self.num_steps), 3)

    @cached_property
    def noise(self) -> float:
        """Standard error of the smoothed loss, from the median difference of consecutive losses."""
        losses = self.losses[np.isfinite(self.losses)]
        scatter = 1.4826 / math.sqrt(2) * float(np.median(np.abs(np.diff(losses)))) if len(losses) > 1 else 0.0
        return scatter / math.sqrt(2 * self._window - 1)

    @cached_property
    def start(self) -> float:
        """Mean of the first losses, at rates at which the model hardly learns."""
        return float(self.losses[np.isfinite(self.losses)][: self._window].mean())

    @cached_property
    def lowest(self) -> int:
        """The step with the lowest smoothed loss, counted from 0, after the first averages, which vary most."""
        first = min(self._window, len(self.losses) - 1)
        return first + int(np.argmin(self.smoothed[first:]))

    @property
    def fall(self) -> float:
        """Fall of the smoothed loss from the start to its minimum."""
        return self.start - float(self.smoothed[self.lowest])

    @property
    def has_fallen(self) -> bool:
        return self.fall > _CLEAR * self.noise

    @cached_property
    def steepest(self) -> int | None:
        """The step, counted from 0, around which the smoothed loss falls most; None if it never fell.

        The rates are evenly spaced on a logarithmic axis, so that a difference over steps is a slope over log rate.
        """
        if not self.has_fallen:
            return None
        width, end = min(self._window, self.lowest // 2), self.lowest + 1
        falls = self.smoothed[: end - 2 * width] - self.smoothed[2 * width : end]
        return width + int(np.argmax(falls))

    @cached_property
    def blow_up(self) -> int | None:
        """The step, counted from 0, at which the loss clearly rises from its minimum; None if it never rose.

        Either the smoothed loss has regained a tenth of its fall, and more than its noise, or no later update has a
        finite loss.
        """
        limit = self.smoothed[self.lowest] + max(_REGAINED * self.fall, _CLEAR * self.noise)
        risen = np.flatnonzero(self.smoothed[self.lowest :] > limit)
        if len(risen):
            return self.lowest + int(risen[0])
        last_finite = int(np.flatnonzero(np.isfinite(self.losses))[-1])
        return last_finite + 1 if np.isinf(self.losses[last_finite + 1 :]).any() else None

    @property
    def is_diverging(self) -> bool:
        """Whether the smoothed loss clearly rose from its minimum and exceeds 4 times its value."""
        return self.blow_up is not None and bool(self.smoothed[-1] > _STOP_FACTOR * self.smoothed[self.lowest])


@dataclass(frozen=True)
class RangeTestResults:
    """A range test of the learning rate.

    Attributes:
        rates: the learning rate of each step; `losses` as in `Curve`.
        num_steps: number of planned steps.
        config_rate: `optimizer.learning_rate`, for comparison.
    """

    model: str
    dataset: str
    objective: str
    batch_size: int
    precision: str
    seed: int
    num_steps: int
    rates: list[float]
    losses: list[float]
    config_rate: float

    @cached_property
    def curve(self) -> Curve:
        return Curve(np.array(self.losses), self.num_steps)

    @property
    def steepest_rate(self) -> float | None:
        """The rate at which the smoothed loss falls most."""
        return None if self.curve.steepest is None else self.rates[self.curve.steepest]

    @property
    def blow_up_rate(self) -> float | None:
        """The rate at which the loss clearly rises from its minimum."""
        return None if self.curve.blow_up is None else self.rates[self.curve.blow_up]

    @property
    def safe_rate(self) -> float | None:
        """A tenth of `blow_up_rate`."""
        return None if self.blow_up_rate is None else self.blow_up_rate / 10

    @property
    def suggestion(self) -> float | None:
        """`safe_rate`, or `steepest_rate` if the loss never rose. None if it also never fell. Two digits."""
        rate = self.safe_rate or self.steepest_rate
        return None if rate is None else _rounded(rate)

    def as_json(self, **more: Any) -> str:
        """All results as one JSON object, with the keys of `more`."""
        derived = ("steepest_rate", "blow_up_rate", "safe_rate", "suggestion")
        values = {name: getattr(self, name) for name in derived}
        return dump_json(asdict(self) | {"smoothed": self.curve.smoothed.tolist()} | values | more) + "\n"

    def describe(self) -> str:
        """The table, as lines of text."""
        curve, last = self.curve, len(self.losses)
        end = f"up to the rate {show_rate(self.rates[-1])}"
        if last < self.num_steps:
            is_finite = math.isfinite(self.losses[-1])
            reason = f"exceeded {_STOP_FACTOR:g} times its minimum" if is_finite else "or its gradient was not finite"
            end = f"of {self.num_steps:,}, {end}, where the loss {reason}"
        low = float(curve.smoothed[curve.lowest])
        loss = f"{curve.start:.4f} → {low:.4f} at {show_rate(self.rates[curve.lowest])}, {self.unit}, smoothed"
        rows = [
            ("steps", f"{last:,}", end),
            ("loss", "", loss if curve.has_fallen else f"never fell by more than its noise: {loss}"),
            ("steepest descent", show_rate(self.steepest_rate), "" if self.steepest_rate else "the loss never fell"),
            (
                "blow-up",
                show_rate(self.blow_up_rate),
                f"the loss never rose up to the rate {show_rate(self.rates[-1])}",
            ),
            (
                "suggestion",
                show_rate(self.suggestion),
                "none, because the loss neither fell nor rose; check the range of the rates",
            ),
            ("config", show_rate(self.config_rate), "optimizer.learning_rate"),
        ]
        if self.blow_up_rate:
            rows[3] = (*rows[3][:2], f"the loss clearly rises; a tenth of it is {show_rate(self.safe_rate)}")
        if self.suggestion:
            source = "a tenth of the blow-up" if self.safe_rate else "the steepest descent, because the loss never rose"
            rows[4] = (*rows[4][:2], source if curve.has_fallen else f"{source}, although the loss never fell")
        return "\n".join(f"{name:<17} {value:>8}  {note}".rstrip() for name, value, note in rows)

    @property
    def unit(self) -> str:
        """The unit of the losses, such as `nats per masked token`."""
        title = metrics_of(self.objective)[0].title
        return title[title.index("(") + 1 : title.index(")")]


def show_rate(rate: float | None) -> str:
    """Two significant digits, such as 5.0e-4; an en dash for None."""
    return "–" if rate is None else f"{rate:.1e}".replace("e-0", "e-").replace("e+00", "")


def plot_range_test(results: RangeTestResults) -> bytes:
    """Loss over learning rate, as png (1600 x 1040 pixels).

    The loss axis ends a little above the loss at the start; larger losses are not visible.
    """
    curve, rates = results.curve, np.array(results.rates)
    figure = Figure(figsize=(8, 5.2), dpi=200, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(rates, curve.losses, ".", color=_LOSS, alpha=0.3, markersize=4, label="loss of each step")
    axes.plot(rates, curve.smoothed, color=_LOSS, linewidth=2, label="smoothed loss")
    _mark(axes, results, results.steepest_rate, "steepest descent", "o", _STEEPEST)
    _mark(axes, results, results.blow_up_rate, "blow-up", "X", _BLOW_UP)
    _mark(axes, results, results.safe_rate, "a tenth of the blow-up", "s", _BLOW_UP)
    if rates[0] <= results.config_rate <= rates[-1]:
        label = f"learning rate of the config {show_rate(results.config_rate)}"
        axes.axvline(results.config_rate, color=_CONFIG, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, label=label)
    low, high = float(curve.smoothed.min()), max(curve.start, float(curve.smoothed[curve.lowest]))
    span = max(high - low, 4 * curve.noise, 1e-3)
    axes.set_ylim(low - 0.12 * span, high + 0.25 * span)
    axes.set_xlim(rates[0], rates[-1])
    axes.set_xlabel("learning rate (logarithmic)", fontsize=10)
    axes.set_ylabel(f"loss of a training step ({results.unit})", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=9)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return as_png(figure)


def _mark(axes: Axes, results: RangeTestResults, rate: float | None, name: str, marker: str, color: str) -> None:
    """A marker on the smoothed curve; nothing for None or a rate outside."""
    if rate is None or not results.rates[0] <= rate <= results.rates[-1]:
        return
    loss = float(np.interp(math.log(rate), np.log(results.rates), results.curve.smoothed))
    is_suggested = results.suggestion == _rounded(rate)
    label = f"{name} {show_rate(rate)}{' (suggestion)' if is_suggested else ''}"
    style: dict[str, Any] = {"markeredgecolor": "white", "markersize": 10, "linestyle": "none", "zorder": 5}
    axes.plot([rate], [loss], marker, color=color, label=label, **style)


def _rounded(rate: float) -> float:
    """Two significant digits."""
    return float(f"{rate:.1e}")
