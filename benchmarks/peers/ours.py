"""tf_mlm with its defaults: the preparation, pipeline, model, optimizer and `fit` that `train.py` uses."""

from measure import StepClock, keras_callback, parse_arguments

from tf_mlm import runtime
from tf_mlm.config import Config, DataConfig, ModelConfig, TrainingConfig

arguments = parse_arguments(
    ("--dataset", {"required": True}),
    ("--accumulate-steps", {"type": int, "default": 1}),
    ("--sequence-length", {"type": int, "default": 128}),
    ("--xla", {"default": "auto"}),
    ("--write-sequences", {"help": "save the prepared ids here for the peers, and stop"}),
)
clock = StepClock(arguments.warmup, arguments.steps)
config = Config(
    model=ModelConfig(name=str(arguments.model), from_config=True),
    data=DataConfig(dataset=arguments.dataset, sequence_length=arguments.sequence_length),
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

from tf_mlm.training.train import prepare

model, tokenizer, data, length, environment = prepare(config)
if arguments.write_sequences:
    np.save(arguments.write_sequences, data.train.input_ids[data.train_rows])
    raise SystemExit
batches = data.train_dataset(config, tokenizer, length.epochs)
model.fit(
    batches, steps_per_epoch=clock.total_steps, callbacks=[keras_callback(keras.callbacks.Callback, clock)], verbose=0
)
clock.report(parameters=model.count_params(), precision=environment["precision"], xla=environment["xla"])
