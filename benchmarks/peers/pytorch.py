"""Train in PyTorch: DistilBertForMaskedLM and collator of transformers, DataLoader, fused AdamW, a plain loop."""

import os

os.environ.update(USE_TF="0", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from datasets import Dataset
from measure import StepClock, load_sequences, parse_arguments

arguments = parse_arguments()
clock = StepClock(arguments.warmup, arguments.steps)
tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
model = transformers.DistilBertForMaskedLM(transformers.AutoConfig.from_pretrained(arguments.model)).train()
parameters = sum(parameter.numel() for parameter in model.parameters())
sequences = load_sequences(arguments)[: clock.total_steps * arguments.batch_size]
attention_mask = (sequences != tokenizer.pad_token_id).astype(int)
dataset = Dataset.from_dict({"input_ids": sequences, "attention_mask": attention_mask})
batches = torch.utils.data.DataLoader(
    dataset,
    batch_size=arguments.batch_size,
    shuffle=True,
    collate_fn=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
    drop_last=True,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
forward = torch.compile(model) if arguments.compile else model
for batch in batches:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.precision == "bfloat16"):
        loss = forward(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    clock.step_ended(loss.item())
clock.report(parameters=parameters)
