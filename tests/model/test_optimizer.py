"""The values of the schedule, the decayed weights, and the update."""

import json
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from transformers.optimization_tf import AdamWeightDecay as StockAdamWeightDecay

from tests.model.conftest import build, own_name, tiny_config
from tf_mlm.config import OptimizerConfig
from tf_mlm.errors import Refused
from tf_mlm.model.optimizer import AdamWeightDecay, WarmUp, build_optimizer, build_schedule, num_warmup_steps


def rates(schedule: Any, *steps: int) -> list[float]:
    return [float(schedule(step)) for step in steps]


def test_the_rate_rises_and_falls_linearly() -> None:
    """100 steps, 20 of them warmup, 80 of decay from 8e-4."""
    schedule = build_schedule(OptimizerConfig(learning_rate=8e-4, num_warmup_steps=20), 100)
    expected = [4e-5, 4.4e-4, 8e-4, 8e-4, 7.9e-4, 4e-4, 1e-5]
    assert rates(schedule, 0, 10, 19, 20, 21, 60, 99) == pytest.approx(expected, rel=1e-5)
    assert rates(schedule, 100, 1000) == [0.0, 0.0]


def test_the_decay_follows_its_power_and_ends_at_the_end_rate() -> None:
    config = OptimizerConfig(learning_rate=1e-3, end_learning_rate=2e-4, power=2.0, num_warmup_steps=10)
    schedule = build_schedule(config, 50)
    expected = [1e-4, 1e-3, 1e-3, 4e-4, 2e-4 + 8e-4 / 1600, 2e-4]
    assert rates(schedule, 0, 9, 10, 30, 49, 50) == pytest.approx(expected, rel=1e-5)


def test_without_warmup_the_first_step_has_the_peak_rate() -> None:
    schedule = build_schedule(OptimizerConfig(learning_rate=8e-4, warmup_ratio=0.0), 4)
    assert rates(schedule, 0, 1, 2, 3) == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4], rel=1e-6)


def test_one_step_of_training_has_a_rate() -> None:
    assert rates(build_schedule(OptimizerConfig(learning_rate=8e-4), 1), 0) == pytest.approx([8e-4])


def test_the_default_run_never_has_rate_0() -> None:
    """transformers' create_optimizer has rate 0 from step 1,000 on, for 1,000 warmup and 940 training steps."""
    config = OptimizerConfig()
    schedule = build_schedule(config, 1880)
    assert num_warmup_steps(config, 1880) == 112
    every = np.array(rates(schedule, *range(0, 1880, 7), 1879))
    assert every.min() > 0
    assert every.max() <= np.float32(2e-5)
    assert (np.diff(every[17:]) < 0).all(), "Keras' own end rate, 1e-4, would make the decay climb"
    assert every[-1] == pytest.approx(2e-5 / (1880 - 112), rel=1e-4)


@pytest.mark.parametrize("warmup", [940, 1000])
def test_a_warmup_as_long_as_the_training_is_refused_with_both_numbers_and_the_fix(warmup: int) -> None:
    with pytest.raises(
        Refused, match=rf"optimizer.num_warmup_steps = {warmup}: .* 940 steps .*warmup_ratio"
    ) as refusal:
        build_schedule(OptimizerConfig(num_warmup_steps=warmup), 940)
    assert "\n" not in str(refusal.value)


def test_the_longest_warmup_leaves_one_step() -> None:
    assert rates(build_schedule(OptimizerConfig(learning_rate=1e-3, num_warmup_steps=939), 940), 938, 939) == (
        pytest.approx([1e-3, 1e-3])
    )


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (10, 0), (100, 6), (940, 56), (18_800, 1128)])
def test_a_ratio_follows_the_length_of_the_training(steps: int, warmup: int) -> None:
    assert num_warmup_steps(OptimizerConfig(warmup_ratio=0.06), steps) == warmup


def test_no_ratio_takes_the_whole_training() -> None:
    assert num_warmup_steps(OptimizerConfig(warmup_ratio=0.999999), 5) == 4
    assert rates(build_schedule(OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.999999), 5), 4) == pytest.approx(
        [1e-3]
    )


def test_a_restored_optimizer_has_the_same_schedule_and_exclusions() -> None:
    config = OptimizerConfig(learning_rate=8e-4, end_learning_rate=1e-5, power=3.0, num_warmup_steps=20, beta_2=0.98)
    optimizer = build_optimizer(config, 100, "float32")
    stored = json.dumps(optimizer.get_config())
    restored = AdamWeightDecay.from_config(json.loads(stored))
    assert json.dumps(restored.get_config()) == stored
    assert isinstance(restored.learning_rate, WarmUp)
    steps = (0, 19, 20, 60, 99)
    assert rates(restored.learning_rate, *steps) == rates(optimizer.learning_rate, *steps)
    for name in ("a/LayerNorm/gamma:0", "a/sa_layer_norm/beta:0", "a/dense/bias:0", "a/dense/kernel:0"):
        assert restored._do_use_weight_decay(name) == optimizer._do_use_weight_decay(name) == name.endswith("kernel:0")
    assert float(restored.beta_2) == float(np.float32(0.98))
    assert (restored.epsilon, restored.weight_decay_rate) == (1e-8, 0.01)


def test_a_restored_optimizer_has_the_same_constant_rate() -> None:
    restored = AdamWeightDecay.from_config(AdamWeightDecay(3e-4, weight_decay_rate=0.1).get_config())
    assert float(restored.learning_rate) == pytest.approx(3e-4)
    assert restored.weight_decay_rate == 0.1


def test_the_stock_optimizer_loses_its_exclusions() -> None:
    """The reason for our class: once transformers fixes this, remove the class."""
    stock: Any = StockAdamWeightDecay(1e-3, weight_decay_rate=0.01, exclude_from_weight_decay=["bias"])
    assert "exclude_from_weight_decay" not in stock.get_config()


def test_all_weights_but_layer_norms_and_biases_are_decayed(model_type: str) -> None:
    optimizer = build_optimizer(OptimizerConfig(), 100, "float32")
    names = {own_name(variable): variable for variable in build(tiny_config(model_type)).trainable_variables}
    decayed = {name for name in names if optimizer._do_use_weight_decay(name)}
    kept = names.keys() - decayed
    assert all(re.search(r"/(kernel|embeddings|weight):0$", name) for name in decayed)
    assert all(re.search(r"/(gamma|beta|bias):0$", name) for name in kept)
    assert decayed == {name for name, variable in names.items() if variable.shape.rank > 1}
    assert len(decayed) > 10 and len(kept) > 10


def test_the_decayed_weights_of_one_layer_of_distilbert() -> None:
    config = tiny_config("distilbert")
    config.n_layers = 1
    optimizer = build_optimizer(OptimizerConfig(), 100, "float32")
    layer = "distilbert/transformer/layer_._0"
    names = [own_name(variable) for variable in build(config).trainable_variables]
    assert [name for name in names if optimizer._do_use_weight_decay(name)] == [
        "distilbert/embeddings/word_embeddings/weight:0",
        "distilbert/embeddings/position_embeddings/embeddings:0",
        *(f"{layer}/attention/{name}_lin/kernel:0" for name in ("q", "k", "v", "out")),
        *(f"{layer}/ffn/{name}/kernel:0" for name in ("lin1", "lin2")),
        "vocab_transform/kernel:0",
    ]


def test_without_weight_decay_nothing_is_decayed() -> None:
    optimizer = build_optimizer(OptimizerConfig(weight_decay_rate=0.0), 100, "float32")
    assert not optimizer._do_use_weight_decay("dense/kernel:0")


def test_three_updates_are_those_of_adamw_by_hand() -> None:
    """Adam of Kingma and Ba 2015, section 2, epsilon added to the uncorrected root, with decoupled weight decay."""
    config = OptimizerConfig(
        learning_rate=0.1, num_warmup_steps=2, beta_1=0.8, beta_2=0.95, epsilon=1e-3, weight_decay_rate=0.3
    )
    optimizer = build_optimizer(config, 4, "float32")
    kernel, bias = (tf.Variable([1.0, -2.0, 0.5], name=name) for name in ("dense/kernel", "dense/bias"))
    w = np.array([[1.0, -2.0, 0.5]] * 2)
    m, v, decay = np.zeros(3), np.zeros(3), np.array([[0.3], [0.0]])
    for t, (rate, gradient) in enumerate(
        [(0.05, [1.0, -0.2, 0.0]), (0.1, [0.5, 3.0, 0.0]), (0.1, [-2.0, 0.1, 4.0])], 1
    ):
        optimizer.apply_gradients([(tf.constant(gradient), kernel), (tf.constant(gradient), bias)])
        g = np.array(gradient)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        step = rate * np.sqrt(1 - 0.95**t) / (1 - 0.8**t) * m / (np.sqrt(v) + 1e-3)
        w = w - rate * decay * w - step
        np.testing.assert_allclose([kernel.numpy(), bias.numpy()], w, rtol=2e-6)
    assert (kernel.numpy() != bias.numpy()).all()


def test_float16_alone_scales_the_loss() -> None:
    optimizer = build_optimizer(OptimizerConfig(), 100, "float16")
    assert isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert isinstance(optimizer.inner_optimizer, AdamWeightDecay)
    assert float(optimizer.loss_scale) == 2**15
    for precision in ("float32", "bfloat16"):
        assert isinstance(build_optimizer(OptimizerConfig(), 100, precision), AdamWeightDecay)
