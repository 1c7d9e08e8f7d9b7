"""The products of which the ceiling is made are those of the step, and their time is that of matrix products."""

import time

import tensorflow as tf

from tests.model.conftest import LENGTH, build, compile_model, make_batch, tiny_config
from tf_mlm.model.matmul_peak import Product, measure_matmul_peak, step_products


def graph_flops(function, *arguments) -> int:
    """Multiplications and additions of every matrix product in the traced graph."""

    def shape(tensor, transposed) -> list[int]:
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


def test_the_products_are_those_of_the_traced_step(model_type) -> None:
    config = tiny_config(model_type)
    config.num_hidden_layers = 3
    model = compile_model(build(config))
    features, labels = make_batch()
    products = step_products(config, len(labels), LENGTH, num_slots=5)
    assert sum(product.flops for product in products) == graph_flops(model.train_step, (features, labels))


def test_the_time_is_that_of_the_products(monkeypatch) -> None:
    """Twice as many of a product take twice the time, and no product is faster than the clock allows."""
    product = Product(1, 1, 256, 256, 256)
    monkeypatch.setattr(time, "perf_counter", iter(range(10_000)).__next__)  # each product takes one second
    assert measure_matmul_peak([product], "float32") == 3  # forward, and two backward
    assert measure_matmul_peak([product, product._replace(times=4)], "float32") == 3 + 12
    assert measure_matmul_peak([product._replace(batch=6)], "bfloat16") == 3
