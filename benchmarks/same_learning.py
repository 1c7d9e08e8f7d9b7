"""Compare learning with the fast defaults and with the plain float32 model and the stock loss.

    python benchmarks/same_learning.py --model NAME_OR_DIR [--dataset NAME_OR_PATH] [--plot FILE]

Both train on the same sequences, order and masks, with the same optimizer. The plain model is the class of
transformers: loss over the logits of every position, Keras' dropout, no XLA. Each run is a separate process. Validation
is token-weighted over the same masked tokens, in the precision of the run.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="distilbert-base-uncased")
    parser.add_argument("--dataset", default="stanfordnlp/imdb")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--validation-sequences", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between two validations")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--worker", choices=("fast", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return train(arguments)

    losses: dict[tuple[str, int], dict[str, float]] = {}
    for seed in arguments.seeds:
        for worker in ("fast", "plain"):
            command = [sys.executable, *sys.argv, "--worker", worker, "--seeds", str(seed)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            losses[worker, seed] = json.loads(output.splitlines()[-1])
            print(worker, seed, losses[worker, seed], file=sys.stderr, flush=True)

    last = str(arguments.steps)
    print(f"validation loss after {last} steps of {arguments.batch_size} x {arguments.sequence_length} tokens")
    print(f"{'seed':>4}  {'before':>8}  {'fast':>8}  {'plain':>8}  {'fast / plain':>12}")
    for seed in arguments.seeds:
        fast, plain = losses["fast", seed], losses["plain", seed]
        print(f"{seed:>4}  {plain['0']:8.4f}  {fast[last]:8.4f}  {plain[last]:8.4f}  {fast[last] / plain[last]:12.4f}")
    if arguments.plot:
        plot(arguments.plot, losses)


def train(arguments: argparse.Namespace) -> None:
    """Train one of the two models with one seed and print its validation losses by step."""
    from tf_mlm import runtime
    from tf_mlm.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig

    fast, [seed] = arguments.worker == "fast", arguments.seeds
    config = Config(
        model=ModelConfig(name=arguments.model),
        data=DataConfig(
            dataset=arguments.dataset,
            sequence_length=arguments.sequence_length,
            num_validation_sequences=arguments.validation_sequences,
        ),
        optimizer=OptimizerConfig(learning_rate=arguments.learning_rate),
        training=TrainingConfig(
            num_train_steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=seed,
            **({} if fast else {"precision": "float32", "xla": "off"}),
        ),
    )
    runtime.prepare(config.training)

    import tensorflow as tf
    import tf_keras as keras
    import transformers

    from tf_mlm.data.pipeline import build_collator, build_validation_dataset
    from tf_mlm.run.directory import RunDirectory
    from tf_mlm.training.train import build_job

    job = build_job(config, RunDirectory(Path("unused")))  # creates no directory
    model, data = job.model, job.data
    batches = data.train_dataset(config, job.tokenizer, job.length.epochs)
    validation = build_validation_dataset(
        build_collator(data.validation, job.tokenizer, config.masking, 0, validation=True),
        data.validation_rows,
        batch_size=arguments.batch_size,
    )
    losses: dict[str, float] = {}

    def validate(step: int) -> None:
        losses[str(step)] = model.evaluate(validation, verbose=0, return_dict=True)["loss"]

    validate(0)
    if fast:
        validation_clock = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, _: validate((epoch + 1) * arguments.every)
        )
        epochs = arguments.steps // arguments.every
        model.fit(batches, steps_per_epoch=arguments.every, epochs=epochs, callbacks=[validation_clock], verbose=0)
    else:
        stock_class = getattr(transformers, f"TF{type(model).__name__}")
        stock = stock_class(model.config)
        stock.build_in_name_scope()
        stock.set_weights(model.get_weights())
        optimizer = model.optimizer

        @tf.function
        def step(features: dict[str, Any], labels: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(stock(features, labels=labels, training=True).loss)
            gradients = tape.gradient(loss, stock.trainable_variables)
            gradients, _ = tf.clip_by_global_norm(gradients, config.optimizer.clip_norm)
            optimizer.apply_gradients(zip(gradients, stock.trainable_variables, strict=True))

        for number, (features, labels) in enumerate(batches.take(arguments.steps), start=1):
            step(features, labels)
            if number % arguments.every == 0:
                model.set_weights(stock.get_weights())
                validate(number)
    print(json.dumps(losses))


def plot(path: Path, losses: dict[tuple[str, int], dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    for (worker, seed), by_step in losses.items():
        steps = [int(step) for step in by_step]
        style = {"fast": {"color": "C0"}, "plain": {"color": "C1", "linestyle": "--"}}[worker]
        label = {"fast": "tf_mlm, defaults", "plain": "plain float32, stock loss"}[worker]
        axes.plot(steps[1:], list(by_step.values())[1:], label=f"{label}, seed {seed}", alpha=0.8, **style)
    axes.set(xlabel="step", ylabel="validation loss (nats per masked token)")
    axes.legend(frameon=False)
    axes.figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
