"""Time the matrix products of tf_mlm's training step alone, in the precision that it chooses by default."""

from measure import load_sequences, parse_arguments

from tf_mlm import runtime
from tf_mlm.config import TrainingConfig

arguments = parse_arguments()
runtime.prepare(TrainingConfig())

import json

import transformers

from tf_mlm.data.masking import num_slots
from tf_mlm.model.matmul_peak import measure_matmul_peak, step_products

length = load_sequences(arguments).shape[1]
products = step_products(
    transformers.AutoConfig.from_pretrained(arguments.model), arguments.batch_size, length, num_slots(length, 0.15)
)
precision = runtime.choose_precision("auto").name
seconds = [measure_matmul_peak(products, precision) for _ in range(arguments.steps)]
print(json.dumps({"seconds": seconds, "peak_bytes": 0, "flops": sum(product.flops for product in products)}))
