"""The head on masked positions alone gives the loss and the gradients of the stock classes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import transformers

from tests.conftest import ROOT
from tests.model.conftest import (
    LENGTH,
    VOCAB_SIZE,
    assert_same_gradients,
    build,
    build_pair,
    compile_model,
    gradients_of,
    make_batch,
    stock_loss_and_gradients,
    tiny_config,
)
from tf_mlm.config import OptimizerConfig
from tf_mlm.model.masked_lm import model_class
from tf_mlm.model.metrics import metric_results
from tf_mlm.model.optimizer import build_optimizer
from tf_mlm.run.checkpoint import model_variables

REVIEWS = (
    "I rented this film because of all the controversy that surrounded it when it was first released.",
    "The plot is thin.",
    "This was without a doubt one of the worst pictures I have seen in years, and I have seen many.",
    "A great cast, a fine script and music to remember: what more could anyone ask of an evening?",
    "He says nothing for the first twenty minutes.",
)


def test_loss_and_gradients_equal_the_stock_class(model_type: str) -> None:
    ours, stock = build_pair(tiny_config(model_type))
    features, labels = make_batch((3, 1, 0, 5, 2, 4))
    loss, gradients = stock_loss_and_gradients(stock, features, labels)
    assert_same_gradients(gradients_of(compile_model(ours), features, labels), gradients)
    assert metric_results(ours)["loss"] == pytest.approx(loss, rel=1e-6)
    assert float(ours.metrics[0].count) == 15


def test_loss_and_gradients_equal_the_stock_class_on_trained_weights(shared: Path) -> None:
    folder = shared / "models" / "minilm-l6-distilbert"
    config = transformers.DistilBertConfig.from_pretrained(folder, dropout=0.0, attention_dropout=0.0)
    ours = model_class("distilbert").from_pretrained(folder, config=config)
    stock = transformers.TFDistilBertForMaskedLM.from_pretrained(folder, config=config)
    auto_tokenizer: Any = transformers.AutoTokenizer
    tokenizer = auto_tokenizer.from_pretrained(folder)
    encoded = tokenizer(list(REVIEWS), padding="max_length", max_length=32, truncation=True, return_tensors="np")
    input_ids, labels = encoded["input_ids"].astype(np.int32), np.full((5, 32), -100, np.int32)
    for row, chosen in enumerate(([2, 3, 9, 11], [2], [1, 4, 7, 12, 19, 21], [], [5, 8])):
        labels[row, chosen] = input_ids[row, chosen]
        input_ids[row, chosen] = tokenizer.mask_token_id
    features = {"input_ids": tf.constant(input_ids), "attention_mask": tf.constant(encoded["attention_mask"], tf.int32)}
    labels = tf.constant(labels)
    loss, gradients = stock_loss_and_gradients(stock, features, labels)
    compile_model(ours, max_masked_per_sequence=6)
    assert_same_gradients(gradients_of(ours, features, labels), gradients)
    assert metric_results(ours)["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_call_without_labels_returns_the_stock_logits(model_type: str) -> None:
    ours, stock = build_pair(tiny_config(model_type))
    features, _ = make_batch()
    compile_model(ours)
    logits = ours(features).logits
    assert logits.shape == (6, LENGTH, VOCAB_SIZE)
    np.testing.assert_array_equal(logits, stock(features).logits)


def test_a_batch_without_any_label_has_loss_0_and_leaves_finite_weights(model_type: str) -> None:
    """The stock class divides 0 by 0, and one step makes every weight NaN."""
    optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.0), 10, "float32")
    model = compile_model(build(tiny_config(model_type)), optimizer=optimizer, clip_norm=1.0)
    model.train_step(make_batch((3, 1, 0, 5, 2, 4)))
    features, _ = make_batch()
    nothing = tf.fill([6, LENGTH], -100)
    assert all((gradient == 0).all() for gradient in gradients_of(model, features, nothing).values())
    model.reset_metrics()
    model.train_step((features, nothing))
    assert int(optimizer.iterations) == 2
    assert metric_results(model) == {"loss": 0.0, "masked_accuracy": 0.0, "masked_accuracy_top_5": 0.0}
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_the_label_0_counts() -> None:
    """`labels > 0` as the mask would drop it."""
    ours, stock = build_pair(tiny_config("distilbert"))
    features, labels = make_batch((0, 0, 0))
    labels = tf.tensor_scatter_nd_update(labels, [[1, 2], [2, 1]], [0, 9])
    loss, gradients = stock_loss_and_gradients(stock, features, labels)
    compile_model(ours)
    assert_same_gradients(gradients_of(ours, features, labels), gradients)
    assert float(ours.metrics[0].count) == 2
    assert metric_results(ours)["loss"] == pytest.approx(loss, rel=1e-6)


def test_all_slots_of_a_row_and_the_last_position_can_carry_a_label() -> None:
    ours, stock = build_pair(tiny_config("distilbert"))
    features, labels = make_batch((0, 0))
    labels = tf.tensor_scatter_nd_update(labels, [[0, i] for i in (0, 3, 4, LENGTH - 1)], [6, 7, 8, 9])
    features["attention_mask"] = tf.ones_like(labels)
    compile_model(ours, max_masked_per_sequence=4)
    loss, gradients = stock_loss_and_gradients(stock, features, labels)
    assert_same_gradients(gradients_of(ours, features, labels), gradients)
    assert metric_results(ours)["loss"] == pytest.approx(loss, rel=1e-6)


def test_padding_rows_of_a_batch_change_nothing() -> None:
    model = compile_model(build(tiny_config("distilbert")))
    features, labels = make_batch((3, 1, 5))
    expected = gradients_of(model, features, labels)
    loss = metric_results(model)
    filler = {
        "input_ids": tf.zeros([4, LENGTH], tf.int32),
        "attention_mask": tf.one_hot([0] * 4, LENGTH, dtype=tf.int32),
    }
    filled = {name: tf.concat([features[name], filler[name]], 0) for name in features}
    gradients = gradients_of(model, filled, tf.concat([labels, tf.fill([4, LENGTH], -100)], 0))
    assert_same_gradients(gradients, expected)
    assert metric_results(model) == pytest.approx(loss, rel=1e-6)
    assert float(model.metrics[0].count) == 9


@pytest.mark.parametrize("num_parts", [2, 3, 6])
def test_parts_of_a_batch_add_up_to_the_whole(num_parts: int) -> None:
    """Each label has the same weight in any part; one of the six parts has no label."""
    config = tiny_config("distilbert")
    features, labels = make_batch((3, 1, 0, 5, 2, 4))
    whole = compile_model(build(config))
    expected = gradients_of(whole, features, labels)
    parts = compile_model(build(config), accumulate_steps=num_parts)
    assert_same_gradients(gradients_of(parts, features, labels), expected)
    assert metric_results(parts) == pytest.approx(metric_results(whole), rel=1e-6)
    assert float(parts.metrics[0].count) == 15


def graph_nodes(model: Any) -> list[dict[str, Any]]:
    """For each function of the traced training step, its nodes by name."""
    graph = tf.function(model.train_step).get_concrete_function(make_batch()).graph.as_graph_def()
    functions = [graph.node, *(function.node_def for function in graph.library.function)]
    return [{node.name: node for node in nodes} for nodes in functions]


def test_the_parts_of_a_batch_are_gathered_in_a_loop_not_sliced() -> None:
    """XLA compiles a cluster again for each start of a slice, and runs it uncompiled first, with other float bits."""
    config = tiny_config("distilbert", dropout=0.1)
    numbers_of_nodes = set()
    for parts in (2, 3):
        functions = graph_nodes(compile_model(build(config), accumulate_steps=parts))
        numbers_of_nodes.add(sum(map(len, functions)))
        (body,) = (nodes for nodes in functions if any(node.op == "MatMul" for node in nodes.values()))
        sliced = [node for node in body.values() if node.op in ("Slice", "StridedSlice")]
        assert sliced and all(node.input[0].partition(":")[0] in body for node in sliced), "an argument is sliced"
        assert any(node.op in ("While", "StatelessWhile") for nodes in functions for node in nodes.values())
    assert len(numbers_of_nodes) == 1, "the loop is unrolled"


def test_a_batch_size_that_is_no_multiple_of_the_parts_is_an_assertion_error() -> None:
    model = compile_model(build(tiny_config("distilbert")), accumulate_steps=4)
    with pytest.raises(AssertionError):
        model.train_step(make_batch((3, 1, 0, 5, 2, 4)))


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    features, labels = make_batch()
    free = gradients_of(compile_model(build(tiny_config("distilbert"))), features, labels)
    clipped = gradients_of(compile_model(build(tiny_config("distilbert")), clip_norm=0.25), features, labels)
    norm = np.sqrt(sum(np.square(gradient).sum() for gradient in free.values()))
    assert norm > 0.5
    assert_same_gradients(clipped, {name: gradient * 0.25 / norm for name, gradient in free.items()})


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_in_mixed_precision_the_loss_is_computed_in_float32(policy: Callable[[str], None], precision: str) -> None:
    policy(f"mixed_{precision}")
    model = compile_model(build(tiny_config("distilbert")))
    losses, logits, labels, weights = model.label_outputs(*make_batch(), training=False)
    assert model.vocab_transform(tf.zeros([1, 16])).dtype == precision
    assert {variable.dtype for variable in model.weights} == {tf.float32}
    assert losses.dtype == logits.dtype == tf.float32
    exact = logits.numpy().astype(np.float64)
    exact = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, labels.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses, exact * weights.numpy(), rtol=1e-6)
    assert (losses.numpy() > 0).sum() == 15


def test_float16_scales_the_loss_unscales_the_gradients_and_skips_an_overflow(
    policy: Callable[[str], None],
) -> None:
    features, labels = make_batch()
    expected = gradients_of(compile_model(build(tiny_config("distilbert"))), features, labels)
    policy("mixed_float16")
    optimizer = build_optimizer(OptimizerConfig(), 10, "float16")
    model = compile_model(build(tiny_config("distilbert")), optimizer=optimizer, accumulate_steps=2, clip_norm=1.0)
    optimizer._loss_scale.current_loss_scale.assign(2.0**7)
    model._clip_norm = 0.0
    assert_same_gradients(gradients_of(model, features, labels), expected, tolerance=0.1)

    before, model._clip_norm = model.get_weights(), 1.0
    optimizer._loss_scale.current_loss_scale.assign(2.0**40)
    model.train_step((features, labels))
    assert float(optimizer.loss_scale) == 2.0**39
    assert int(optimizer.iterations) == 1, "a skipped update is counted, so that the schedule stays in step"
    assert all((now == then).all() for now, then in zip(model.get_weights(), before, strict=True))
    optimizer._loss_scale.current_loss_scale.assign(2.0**7)
    model.train_step((features, labels))
    assert int(optimizer.iterations) == 2
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert any((now != then).any() for now, then in zip(model.get_weights(), before, strict=True))


@tf.custom_gradient
def infinite_gradient(losses: Any) -> Any:
    return tf.identity(losses), lambda upstream: upstream * np.inf


SPOILED = {
    "the loss alone": lambda losses: losses + tf.stop_gradient(tf.fill(losses.shape, np.inf)),
    "the gradient alone": infinite_gradient,
}


def state_of(model: Any) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in model_variables(model).items()}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_steps": 3, "clip_norm": 1.0}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_a_non_finite_step_changes_only_the_number_of_steps(
    monkeypatch: pytest.MonkeyPatch, spoiled: str, options: dict[str, Any]
) -> None:
    optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-2), 10, "float32")
    model = compile_model(build(tiny_config("distilbert")), optimizer=optimizer, **options)
    outputs, is_bad = type(model).label_outputs, tf.Variable(False)

    def spoil(self: Any, features: Any, labels: Any, training: Any) -> Any:
        losses, *others = outputs(self, features, labels, training)
        return tf.cond(is_bad, lambda: SPOILED[spoiled](losses), lambda: losses), *others

    monkeypatch.setattr(type(model), "label_outputs", spoil)
    step = tf.function(model.train_step, jit_compile=options.get("jit_compile"))
    assert float(step(make_batch())["bad_step"]) == 0
    before = state_of(model)
    is_bad.assign(True)
    logs = step(make_batch())
    assert float(logs["bad_step"]) == 1 and np.isfinite(float(logs["loss"]))
    after = state_of(model)
    changed = [name for name in before if (before[name] != after[name]).any()]
    assert changed == ["optimizer/0"] and after["optimizer/0"] == 2  # the schedule, dropout and the data follow it
    is_bad.assign(False)
    assert float(step(make_batch())["bad_step"]) == 0
    assert len([name for name in before if (state_of(model)[name] != after[name]).any()]) > 30


def test_a_non_finite_step_in_float16_is_bad_only_at_a_loss_scale_of_1(policy: Callable[[str], None]) -> None:
    policy("mixed_float16")
    optimizer = build_optimizer(OptimizerConfig(), 10, "float16")
    model = compile_model(build(tiny_config("distilbert")), optimizer=optimizer, clip_norm=1.0)
    model.weights[0].assign(model.weights[0] * np.nan)
    optimizer._loss_scale.current_loss_scale.assign(4.0)
    bad = [(float(model.train_step(make_batch())["bad_step"]), float(optimizer.loss_scale)) for _ in range(4)]
    assert bad == [(0, 2), (0, 1), (1, 1), (1, 1)]
    assert float(model.metrics[0].count) == 0 and int(optimizer.iterations) == 4


class Counting(model_class("distilbert")):  # type: ignore[misc]
    """Counts how often Keras traces a training and a test step."""

    traces = 0

    def train_step(self, data: Any) -> Any:
        self.traces += 1
        return super().train_step(data)

    def test_step(self, data: Any) -> Any:
        self.traces += 1
        return super().test_step(data)


def fit_data(num_batches: int) -> tf.data.Dataset:
    features, labels = make_batch()
    return tf.data.Dataset.from_tensors((features, labels)).repeat(num_batches)


def test_two_epochs_of_fit_trace_each_function_once() -> None:
    config = tiny_config("distilbert", dropout=0.1)
    keras.utils.set_random_seed(3)
    model = Counting(config)
    model.build_in_name_scope()
    optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-2), 6, "float32")
    compile_model(model, optimizer=optimizer, accumulate_steps=2, clip_norm=1.0)
    model.fit(fit_data(6), steps_per_epoch=3, epochs=2, validation_data=fit_data(2), verbose=0)
    history = model.history.history
    assert model.traces == 2
    assert int(optimizer.iterations) == 6
    names = [f"{part}{name}" for part in ("", "val_") for name in metric_results(model)]
    assert sorted(history) == sorted([*names, "bad_step"])
    assert history["val_loss"][1] < history["val_loss"][0] < 6


def test_a_resumed_fit_runs_the_remaining_steps_and_the_next_fit_starts_over() -> None:
    model = compile_model(build(tiny_config("distilbert")), optimizer=keras.optimizers.legacy.SGD(1e-3))
    seen: list[tuple[str, int]] = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(("epoch", epoch)),
        on_train_batch_begin=lambda batch, logs: seen.append(("batch", batch)),
    )
    model.resume_at(5, steps_per_epoch=4)
    model.fit(fit_data(100), steps_per_epoch=4, epochs=3, callbacks=[watch], verbose=0)
    batches = [[("batch", 1), ("batch", 2), ("batch", 3)], [("batch", i) for i in range(4)]]
    assert seen == [("epoch", 1), *batches[0], ("epoch", 2), *batches[1]]
    assert int(model.optimizer.iterations) == 7
    seen.clear()
    model.fit(fit_data(2), initial_epoch=8, epochs=9, callbacks=[watch], verbose=0)
    assert seen == [("epoch", 8), ("batch", 0), ("batch", 1)]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["distilbert", "albert"])
def test_the_step_compiled_by_xla_is_the_same_step(model_type: str) -> None:
    config = tiny_config(model_type, dropout=0.2)
    config.n_layers = 1  # compiling is what takes long
    models = [
        compile_model(build(config), jit_compile=jit, accumulate_steps=2, clip_norm=0.5, seed=11)
        for jit in (False, True)
    ]
    for model in models:
        model.fit(fit_data(2), verbose=0)
    start = build(config).get_weights()
    for plain, compiled, before in zip(*(model.get_weights() for model in models), start, strict=True):
        np.testing.assert_allclose(compiled - before, plain - before, atol=2e-5)
    assert max(np.abs(now - before).max() for now, before in zip(models[0].get_weights(), start, strict=True)) > 0.05
    assert metric_results(models[1]) == pytest.approx(metric_results(models[0]), rel=1e-5)


MIRRORED = """
import json, sys
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.model.conftest import build, compile_model, make_batch, tiny_config
import numpy as np
import tf_keras as keras
from pathlib import Path
from tf_mlm import runtime
from tf_mlm.model.metrics import metric_results, total_and_count
from tf_mlm.run.checkpoint import Progress, load_checkpoint, model_variables, restore_variables, save_checkpoint

mirrored, alone = runtime.choose_strategy("mirrored"), tf.distribute.get_strategy()
batch = make_batch((3, 1, 0, 5, 2, 4, 0, 0))
data = tf.data.Dataset.from_tensors(batch)

def step(strategy, dropout=0.0, **options):
    with strategy.scope():
        model = build(tiny_config("distilbert", dropout))
        compile_model(model, optimizer=keras.optimizers.legacy.Adam(0.1, epsilon=1.0), clip_norm=0.5, **options)
    before = model.get_weights()
    model.fit(data, verbose=0)
    return model, [now - then for now, then in zip(model.get_weights(), before)]

def distance(a, b):
    return float(max(np.abs(x - y).max() for x, y in zip(a, b)))

single, by_one = step(alone)
double, by_two = step(mirrored)
parts, by_parts = step(mirrored, accumulate_steps=2)
_, dropped_one = step(alone, dropout=0.5)
_, dropped_parts = step(mirrored, dropout=0.5, accumulate_steps=2)
_, dropped_two = step(mirrored, dropout=0.5)

class Sums(keras.callbacks.Callback):
    # Reads the metrics in the middle of an epoch, as the training's log does.
    def __init__(self):
        super().__init__()
        self.read = []

    def on_train_batch_end(self, batch, logs=None):
        self.read.append([total_and_count(metric) for metric in self.model.metrics])

def epochs(strategy):
    with strategy.scope():
        model = build(tiny_config("distilbert"))
        compile_model(model, optimizer=keras.optimizers.legacy.Adam(0.01, epsilon=1e-3), clip_norm=0.5)
    sums = Sums()
    model.fit(data.repeat(6), steps_per_epoch=3, epochs=2, validation_data=data.repeat(2), callbacks=[sums], verbose=0)
    return {"sums": sums.read, "history": model.history.history, "results": metric_results(model)}

fitted = {"one": epochs(alone), "two": epochs(mirrored)}

folder = Path(sys.argv[1])
from tf_mlm.config import OptimizerConfig
from tf_mlm.model.optimizer import build_optimizer

with mirrored.scope():
    # A second batch whose second half, on the second device alone, has a loss that is not a number.
    adam = build_optimizer(OptimizerConfig(), 9, "float32")
    spoiled = compile_model(build(tiny_config("distilbert")), optimizer=adam)
outputs = type(spoiled).label_outputs
def spoil(self, features, labels, training):
    losses, *others = outputs(self, features, labels, training)
    return losses * tf.where(tf.reduce_any(features["attention_mask"] == 2), float("nan"), 1.0), *others
type(spoiled).label_outputs = spoil
marked = {**batch[0], "attention_mask": tf.tensor_scatter_nd_update(batch[0]["attention_mask"], [[7, 0]], [2])}
spoiled.fit(data, verbose=0)
before = [value.numpy() for value in model_variables(spoiled).values()]
bad = spoiled.fit(tf.data.Dataset.from_tensors((marked, batch[1])), verbose=0).history["bad_step"]
after = model_variables(spoiled)
changed = [name for name, then in zip(after, before) if (after[name].numpy() != then).any()]
type(spoiled).label_outputs = outputs

save_checkpoint(folder, Progress(1, (0.0, 0.0), 0, 0.0, "f"), model_variables(double), keep=1)
with mirrored.scope():
    other = compile_model(build(tiny_config("distilbert"), seed=4), optimizer=keras.optimizers.legacy.Adam(0.1))
restore_variables(model_variables(other), load_checkpoint(folder, "f")[1])  # outside the scope, as a resumed run does
restored = all((a.numpy() == b.numpy()).all() for a, b in
               zip(model_variables(other).values(), model_variables(double).values()))
print(json.dumps({
    "replicas": mirrored.num_replicas_in_sync,
    "largest": distance(by_one, [0 * x for x in by_one]),
    "mirrored": distance(by_one, by_two),
    "parts": distance(by_one, by_parts),
    "dropout": [distance(dropped_one, other) for other in (dropped_two, dropped_parts, by_one)],
    "metrics": [metric_results(model) for model in (single, double, parts)],
    "bad": bad,
    "changed": [name for name in changed if not name.startswith("metric")],
    "restored": restored,
    "fitted": fitted,
    "restored_loss": metric_results(other),
}))
"""


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of a process with two logical CPU devices, which must be configured before TensorFlow's first op."""
    flags = {"PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1", "TF_XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED, str(tmp_path_factory.mktemp("mirrored"))],
        cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_step_on_two_devices_is_the_step_on_one(mirrored: dict[str, Any]) -> None:
    """Nearly all labels are on the first device: the mean of two means would give another step."""
    assert mirrored["replicas"] == 2
    assert mirrored["largest"] > 1e-4
    assert mirrored["mirrored"] <= 1e-3 * mirrored["largest"]  # the rounding of weights 1,000 times larger
    assert mirrored["parts"] <= 1e-3 * mirrored["largest"]
    single, *others = mirrored["metrics"]
    assert all(metrics == pytest.approx(single, rel=1e-6) for metrics in others)


@pytest.mark.slow
def test_two_devices_drop_the_activations_of_one(mirrored: dict[str, Any]) -> None:
    by_two, by_parts, without = mirrored["dropout"]
    assert max(by_two, by_parts) <= 1e-3 * mirrored["largest"]
    assert without > 1e-2 * mirrored["largest"]


@pytest.mark.slow
def test_a_non_finite_loss_on_one_device_skips_the_update_on_both(mirrored: dict[str, Any]) -> None:
    assert mirrored["bad"][0] > 0
    assert mirrored["changed"] == ["optimizer/0"]


@pytest.mark.slow
def test_a_checkpoint_of_two_devices_is_restored(mirrored: dict[str, Any]) -> None:
    assert mirrored["restored"]
    assert mirrored["restored_loss"] == mirrored["metrics"][1]


@pytest.mark.slow
def test_fit_on_two_devices_gives_the_numbers_of_one(mirrored: dict[str, Any]) -> None:
    """A callback reads the sums of the metrics within the epochs; on two devices `float(metric.total)` is an error."""
    one, two = mirrored["fitted"]["one"], mirrored["fitted"]["two"]
    counts = [[count for _, count in sums] for sums in two["sums"]]
    assert counts == [[15.0 * step] * 3 for step in (1, 2, 3, 1, 2, 3)]
    np.testing.assert_allclose(two["sums"], one["sums"], rtol=1e-5)
    assert two["history"].keys() == one["history"].keys() >= {"loss", "val_loss", "val_masked_accuracy"}
    for name in one["history"]:
        np.testing.assert_allclose(two["history"][name], one["history"][name], rtol=1e-5)
    assert two["results"] == pytest.approx(one["results"], rel=1e-5)
    assert one["history"]["loss"][1] < one["history"]["loss"][0]
