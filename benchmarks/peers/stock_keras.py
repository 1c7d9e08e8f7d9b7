"""Train with the usual Keras recipe: model, loss, collator in `to_tf_dataset` and AdamWeightDecay of transformers."""

import os

os.environ.update(TF_USE_LEGACY_KERAS="1", USE_TORCH="0", TF_CPP_MIN_LOG_LEVEL="3")

import tf_keras as keras
import transformers
from datasets import Dataset
from measure import StepClock, keras_callback, load_sequences, parse_arguments

arguments = parse_arguments()
clock = StepClock(arguments.warmup, arguments.steps)
if arguments.precision == "bfloat16":
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
model = transformers.TFDistilBertForMaskedLM(transformers.AutoConfig.from_pretrained(arguments.model))
sequences = load_sequences(arguments)[: clock.total_steps * arguments.batch_size]
attention_mask = (sequences != tokenizer.pad_token_id).astype(int)
dataset = Dataset.from_dict({"input_ids": sequences, "attention_mask": attention_mask})
batches = dataset.to_tf_dataset(
    batch_size=arguments.batch_size,
    shuffle=True,
    collate_fn=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors="tf"),
    drop_remainder=True,
)
optimizer, _ = transformers.create_optimizer(2e-5, 1000, 100, weight_decay_rate=0.01)
model.compile(optimizer=optimizer)
model.fit(batches, epochs=1, verbose=0, callbacks=[keras_callback(keras.callbacks.Callback, clock)])
clock.report(parameters=model.count_params())
