"""The counted products are those of the training step, and the time is that of the products alone."""

import time
from typing import Any

import pytest
import tensorflow as tf

from tests.model.conftest import LENGTH, build, compile_model, make_batch, tiny_config
from tf_mlm.model.matmul_peak import Product, measure_matmul_peak, step_products


def graph_flops(function: Any, *arguments: Any) -> int:
    """Multiplications and additions of every matrix product in the traced graph."""

    def shape(tensor: Any, transposed: Any) -> list[int]:
        *batch, rows, columns = tensor.shape.as_list()
        return [*batch, columns, rows] if transposed else [*batch, rows, columns]

    flops = 0
    for op in tf.function(function).get_concrete_function(*arguments).graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2"):
            left, right = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
            *batch, rows, inner = shape(op.inputs[0], op.get_attr(left))
            columns = shape(op.inputs[1], op.get_attr(right))[-1]
            count = 2 * rows * inner * columns
            for size in batch:
                count *= size
            flops += count
    return flops


def test_the_counted_products_are_those_of_the_traced_step(model_type: str) -> None:
    config = tiny_config(model_type)
    config.num_hidden_layers = 3
    model = compile_model(build(config))
    features, labels = make_batch()
    products = step_products(config, len(labels), LENGTH, num_slots=5)
    assert sum(product.flops for product in products) == graph_flops(model.train_step, (features, labels))


def test_the_peak_is_the_time_of_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product needed four times takes four times as long; the backward pass has two products for each."""
    product = Product(1, 1, 256, 256, 256)
    monkeypatch.setattr(time, "perf_counter", iter(range(10_000)).__next__)  # each product takes one second
    assert measure_matmul_peak([product], "float32") == 3  # forward, and two backward
    assert measure_matmul_peak([product, product._replace(times=4)], "float32") == 3 + 12
    assert measure_matmul_peak([product._replace(batch=6)], "bfloat16") == 3
