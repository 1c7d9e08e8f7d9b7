"""Train with tf_mlm and its defaults: the job and the `fit` of `train.py`."""

from pathlib import Path

from measure import StepClock, keras_callback, parse_arguments

from tf_mlm import runtime
from tf_mlm.config import Config, DataConfig, ModelConfig, TrainingConfig

arguments = parse_arguments(
    ("--dataset", {"required": True}),
    ("--accumulate-steps", {"type": int, "default": 1}),
    ("--sequence-length", {"type": int, "default": 128}),
    ("--xla", {"default": "auto"}),
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
)
runtime.prepare(config.training)

import numpy as np
import tf_keras as keras

from tf_mlm.run.directory import RunDirectory
from tf_mlm.training.train import build_job

job = build_job(config, RunDirectory(Path("unused")))  # creates no directory
if arguments.write_sequences:
    np.save(arguments.write_sequences, job.data.train.input_ids[job.data.train_rows])
    raise SystemExit
batches = job.data.train_dataset(config, job.tokenizer, job.length.epochs)
callbacks = [keras_callback(keras.callbacks.Callback, clock)]
job.model.fit(batches, steps_per_epoch=clock.total_steps, callbacks=callbacks, verbose=0)
clock.report(parameters=job.model.count_params(), precision=job.machine.precision.name, xla=str(job.machine.xla))
