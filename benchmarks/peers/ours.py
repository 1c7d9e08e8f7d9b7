"""Train with tf_mlm and its defaults: the job and the `fit` of `train.py`, on the workers of TF_CONFIG if it is set."""

import functools
import time
from pathlib import Path
from statistics import median

from measure import StepClock, keras_callback, parse_arguments

from tf_mlm import runtime
from tf_mlm.cluster import create_strategy, find_cluster, join, welcome
from tf_mlm.config import Config, DataConfig, DistributionConfig, ModelConfig, TrainingConfig

arguments = parse_arguments(
    ("--dataset", {"required": True}),
    ("--accumulate-steps", {"type": int, "default": 1}),
    ("--sequence-length", {"type": int, "default": 128}),
    ("--xla", {"default": "auto"}),
    ("--gradient-precision", {"default": "float32"}),
    ("--isolate-documents", {"action": "store_true"}),
    ("--write-sequences", {"help": "save the prepared ids for the peers to this file, and stop"}),
)
clock = StepClock(arguments.warmup, arguments.steps)
config = Config(
    model=ModelConfig(name=str(arguments.model), from_config=True),
    data=DataConfig(
        dataset=arguments.dataset,
        sequence_length=arguments.sequence_length,
        isolate_documents=arguments.isolate_documents,
    ),
    training=TrainingConfig(
        batch_size=arguments.batch_size,
        accumulate_steps=arguments.accumulate_steps,
        num_train_steps=clock.total_steps,
        precision=arguments.precision,
        xla=arguments.xla,
    ),
    distribution=DistributionConfig(gradient_precision=arguments.gradient_precision),
)
cluster = find_cluster(config)
meeting = None
if cluster and cluster.is_chief:
    meeting = welcome(cluster, config, {}, {})
elif cluster:
    meeting, _ = join(cluster, config.distribution, {})
connect = functools.partial(create_strategy, cluster, config.distribution, meeting) if meeting else None
runtime.prepare(config.training, connect=connect)

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.directory import RunDirectory
from tf_mlm.training.train import build_job


def time_exchange(model, strategy, repeats: int = 5) -> float:
    """Median seconds to sum gradients of the model's size over all replicas, without any other computation."""

    @tf.function(autograph=False)
    def exchange() -> list:
        def add() -> list:
            gradients = [tf.zeros(variable.shape, model.gradient_precision) for variable in model.trainable_variables]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

        return strategy.run(add)

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        exchange()[0].numpy()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])  # without the first call, which traces


job = build_job(config, RunDirectory(Path("unused")))  # creates no directory
if arguments.write_sequences:
    np.save(arguments.write_sequences, job.data.train.input_ids[job.data.train_rows])
    raise SystemExit
batches = job.train_dataset(Progress(0, (0.0, 0.0), 0, 0.0, ""))
callbacks = [keras_callback(keras.callbacks.Callback, clock)]
job.model.fit(batches, steps_per_epoch=clock.total_steps, callbacks=callbacks, verbose=0)
exchange_seconds = time_exchange(job.model, job.machine.strategy) if cluster else None
clock.report(
    exchange_seconds=exchange_seconds,
    parameters=job.model.count_params(),
    precision=job.machine.precision.name,
    xla=str(job.machine.xla),
)
