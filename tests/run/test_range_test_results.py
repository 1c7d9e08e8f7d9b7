"""The analysis of a learning rate range test, on losses with a known answer."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from tf_mlm.run.range_test_results import Curve, RangeTestResults, plot_range_test, show_rate

NUM_STEPS = 300
RATES = np.geomspace(1e-7, 1, NUM_STEPS)
DECADES = np.log10(RATES)


def falling(center: float, high: float = 10.0, low: float = 5.0) -> np.ndarray:
    """A loss that falls from `high` to `low`, fastest at the rate `center`."""
    return low + (high - low) / (1 + np.exp(4 * (DECADES - math.log10(center))))


def rising(onset: float) -> np.ndarray:
    """An addend that is 0 up to the rate `onset` and grows by a factor of 10 with every half of a decade above it."""
    return np.where(onset < RATES, 100.0 ** (DECADES - math.log10(onset)) - 1, 0)


def noise(scatter: float, seed: int = 0) -> np.ndarray:
    return scatter * np.random.default_rng(seed).standard_normal(NUM_STEPS)


def results(losses: np.ndarray, config_rate: float = 2e-5, objective: str = "masked") -> RangeTestResults:
    return RangeTestResults(
        model="models/encoder", dataset="reviews", objective=objective, batch_size=32, precision="float32", seed=42,
        num_steps=NUM_STEPS, rates=RATES[: len(losses)].tolist(), losses=losses.tolist(), config_rate=config_rate,
    )  # fmt: skip


@pytest.mark.parametrize("scatter", [0.0, 0.15])
@pytest.mark.parametrize("center", [1e-5, 3e-4])
def test_the_steepest_descent_is_found_with_the_delay_of_the_average(center: float, scatter: float) -> None:
    found = results(falling(center) + noise(scatter)).steepest_rate
    assert found is not None and 0.8 * center < found < 3 * center


def test_a_fall_at_the_first_rates_is_found() -> None:
    falls = results(np.concatenate([np.linspace(10, 5, 15), np.full(100, 5.0)]))
    assert falls.curve.has_fallen and falls.curve.steepest is not None and falls.curve.steepest < 20


@pytest.mark.parametrize("scatter", [0.0, 0.15])
@pytest.mark.parametrize("onset", [1e-3, 2e-2])
def test_the_blow_up_is_found_shortly_after_the_loss_begins_to_rise(onset: float, scatter: float) -> None:
    found = results(falling(1e-5) + rising(onset) + noise(scatter))
    assert found.blow_up_rate is not None and onset < found.blow_up_rate < 3 * onset
    assert found.safe_rate == found.blow_up_rate / 10
    assert found.suggestion == pytest.approx(found.safe_rate, rel=0.05)
    assert float(show_rate(found.suggestion)) == found.suggestion


def test_gradient_descent_on_a_quadratic_blows_up_where_theory_says() -> None:
    """With curvature L, a step of a rate above 2 / L increases the distance from the minimum."""
    curvature, x, losses = 40.0, 1.0, []
    for rate, error in zip(RATES, noise(1.0), strict=True):
        losses.append(1 + curvature / 2 * x**2)
        x -= rate * (curvature * x + error)
    found = results(np.array(losses))
    assert found.blow_up_rate is not None and 2 / curvature < found.blow_up_rate < 3 * (2 / curvature)


def test_a_loss_that_never_rises_has_no_blow_up_and_suggests_the_steepest_descent() -> None:
    found = results(falling(1e-3) + noise(0.1))
    assert found.blow_up_rate is None and found.safe_rate is None
    assert found.suggestion == pytest.approx(found.steepest_rate, rel=0.05)
    assert "blow-up                  –  the loss never rose up to the rate 1.0" in found.describe()


def test_a_loss_that_never_falls_has_no_steepest_descent() -> None:
    flat, rises = results(10 + noise(0.1)), results(10 + rising(1e-3) + noise(0.1))
    for found in (flat, rises):
        assert found.steepest_rate is None and "the loss never fell" in found.describe()
    assert flat.suggestion is None and "none, because the loss neither fell nor rose" in flat.describe()
    # A model that has nothing to learn still shows which rates are too high.
    assert rises.suggestion is not None and 1e-4 < rises.suggestion < 4e-4
    assert "a tenth of the blow-up, although the loss never fell" in rises.describe()


def test_noise_alone_is_neither_a_fall_nor_a_blow_up() -> None:
    curves = [Curve(1 + noise(0.1, seed), NUM_STEPS) for seed in range(50)]
    assert sum(curve.has_fallen for curve in curves) == 0
    assert sum(curve.blow_up is not None for curve in curves) <= 1


def test_skipped_updates_to_the_end_are_a_blow_up_at_the_first_of_them() -> None:
    losses = falling(1e-5)
    losses[200:203] = math.inf
    assert Curve(losses[:203], NUM_STEPS).blow_up == 200
    assert Curve(losses, NUM_STEPS).blow_up is None  # the training recovered
    losses[200:203] = math.nan  # steps without labels
    assert Curve(losses[:203], NUM_STEPS).blow_up is None


def test_the_average_is_exact_for_a_constant_and_ignores_missing_losses() -> None:
    losses = np.full(20, 3.0)
    losses[[0, 7, 12]] = math.inf, math.nan, math.inf
    smoothed = Curve(losses, NUM_STEPS).smoothed
    np.testing.assert_allclose(smoothed, 3.0)
    # Without the bias correction, the first average would be a tenth of the first loss.
    np.testing.assert_allclose(Curve(np.array([2.0, 4.0]), NUM_STEPS).smoothed, [2.0, (0.9 * 2 + 4) / 1.9])


def test_the_test_stops_when_the_loss_exceeds_four_times_its_minimum() -> None:
    losses = falling(1e-5) + rising(1e-2)
    stops = next(n for n in range(1, NUM_STEPS) if Curve(losses[:n], NUM_STEPS).is_diverging)
    smoothed = Curve(losses, NUM_STEPS).smoothed
    assert smoothed[stops - 2] <= 4 * smoothed[: stops - 1].min() < smoothed[stops - 1]


def test_a_minimum_near_zero_does_not_stop_the_test_at_the_first_noise() -> None:
    losses = np.abs(falling(1e-6, high=0.7, low=0.001) + np.where(RATES > 1e-3, 0.005, 0))
    assert Curve(losses, NUM_STEPS).smoothed[-1] > 4 * Curve(losses, NUM_STEPS).smoothed.min()
    assert not Curve(losses, NUM_STEPS).is_diverging


def test_the_json_has_the_losses_the_rates_and_no_infinity() -> None:
    losses = falling(1e-5)[:210]
    losses[207:] = math.inf
    content = json.loads(results(losses).as_json(plot="find-lr.png"))
    assert content["losses"][206:] == [losses[206], None, None, None] and len(content["smoothed"]) == 210
    assert content["rates"][0] == 1e-7 and content["num_steps"] == NUM_STEPS and content["plot"] == "find-lr.png"
    assert content["blow_up_rate"] == RATES[207] and content["safe_rate"] == RATES[207] / 10


CASES: dict[str, dict[str, Any]] = {
    "falls and blows up": {"losses": falling(1e-4) + rising(1e-2) + noise(0.2)},
    "never rises": {"losses": falling(1e-4)},
    "never falls": {"losses": 7 + noise(0.1), "objective": "token_classification"},
    "constant": {"losses": np.full(NUM_STEPS, 0.0)},
    "a rate of the config outside": {"losses": falling(1e-4), "config_rate": 0.999, "objective": "classification"},
    "the first losses are missing": {"losses": np.where(RATES < 1e-6, math.inf, falling(1e-4))},
    "one finite loss": {"losses": np.array([7.0, math.inf, math.inf, math.inf])},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_any_curve_is_drawn_at_the_documented_size_and_described(case: dict[str, Any]) -> None:
    found = results(**case)
    assert struct.unpack(">II", plot_range_test(found)[16:24]) == (1600, 1040)
    assert len(found.describe().splitlines()) >= 4
