"""The model card of a fine-tuned classification model."""

import shlex

from tf_mlm.model.architectures import ARCHITECTURES
from tf_mlm.run.card_parts import (
    RunReport,
    data_section,
    environment_section,
    epochs_section,
    escaped,
    front_matter,
    origin_and_text,
    outcome,
    settings_section,
    summary,
    table,
)

_TASKS = {
    "classification": ("text-classification", "Text classification", "ForSequenceClassification"),
    "token_classification": ("token-classification", "Token classification", "ForTokenClassification"),
}


def build_label_card(report: RunReport, for_hub: bool) -> str:
    """The card as Markdown with the Hub's front matter. Only the last part of a local path is shown.

    Args:
        for_hub: whether the card is published with the model's files, without the rest of the run.
    """
    task_type, task_name, _ = _TASKS[report.config.objective.name]
    data = report.data
    facts = [f"Documents without a label dropped: {data['dropped_unlabeled']:,}"]
    facts += [f"Truncated {split} documents: {data[f'{split}_truncated']:,}" for split in ("train", "validation")]
    unit = "word" if task_type == "token-classification" else "document"
    parts = [
        front_matter(report, task_type=task_type, task_name=task_name, tag=task_type, metrics=["accuracy", "f1"]),
        f"# {escaped(report.run_name)}",
        _what_it_is(report),
        summary(report, "Validation"),
        "![Loss and learning rate over the epochs](loss.png)",
        _how_to_load(report, for_hub),
        _labels(report),
        _limits(report),
        data_section(report, "Each document is one sequence; a longer document is truncated.", facts),
        epochs_section(
            report,
            "The training loss is the mean over the epoch, with dropout; all other metrics are validation metrics. "
            f"Each labeled {unit} has the same weight.",
        ),
        settings_section(report),
        environment_section(report),
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_is(report: RunReport) -> str:
    origin, text = origin_and_text(report)
    predicted = {
        "classification": "predict the label of a text",
        "token_classification": "predict the tag of each word of a text",
    }[report.config.objective.name]
    what = (
        f"This model is {origin}, fine-tuned with tf_mlm in TensorFlow to {predicted}, on {text}. The weights are "
        "those of the epoch with the lowest validation loss."
    )
    return "\n\n".join([what, *outcome(report)])


def _how_to_load(report: RunReport, for_hub: bool) -> str:
    task_type, _, head = _TASKS[report.config.objective.name]
    class_name = ARCHITECTURES[report.model_type].stock_class_name.replace("ForMaskedLM", head)
    folder = "." if for_hub else "model"
    has_pairs = bool(report.config.objective.text_pair_column)
    call = '{"text": "A text.", "text_pair": "Its second text."}' if has_pairs else '"A text."'
    pair = f" --text-pair {shlex.quote('Its second text.')}" if has_pairs else ""
    text = f"""## How to load it

In this directory, with transformers and TensorFlow:

```python
from transformers import AutoTokenizer, {class_name}, pipeline

model = {class_name}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
classify = pipeline("{task_type}", model=model, tokenizer=tokenizer, framework="tf", torch_dtype=None)
print(classify({call}))
```

With tf_mlm:

```
python -m tf_mlm predict . "A text."{pair}
```"""
    return text if for_hub else f"{text}\n\n{_with_tensorflow_alone(report)}"


def _with_tensorflow_alone(report: RunReport) -> str:
    has_pairs = bool(report.config.objective.text_pair_column)
    name = {True: "classify_pair" if has_pairs else "classify", False: "tag"}[
        report.config.objective.name == "classification"
    ]
    if not report.takes_strings:
        interface = "`ids` and `mask` are int32, [batch, length]"
        call = 'logits = model.signatures["logits"](input_ids=ids, attention_mask=mask)["logits"]'
    else:
        interface = "it takes strings and returns " + ("tags with their positions" if name == "tag" else "labels")
        pair = ', text_pair=tf.constant(["Its second text."])' if has_pairs else ""
        call = f'print(model.signatures["{name}"](text=tf.constant(["A text."]){pair}))'
    return f"""With TensorFlow alone, from the SavedModel that a finished run contains; {interface}:

```python
import tensorflow as tf

model = tf.saved_model.load("saved_model")
{call}
```"""


def _labels(report: RunReport) -> str:
    data = report.data
    rows = [
        [escaped(name), f"{train:,}", f"{validation:,}"]
        for name, train, validation in zip(
            data["label_names"], data["train_labels"], data["validation_labels"], strict=True
        )
    ]
    return "## Labels\n\n" + table(["Label", "In training", "In validation"], rows)


def _limits(report: RunReport) -> str:
    return f"""## Use and limits

- The model labels text like its training text. Its metrics were measured on
  {report.data["validation_sequences_used"]:,} validation documents; they do not apply to other text.
- The epoch was chosen by the loss on these documents, so the metrics are slightly optimistic.
- Errors and biases of the labels and of the starting model can occur in the predictions; they were not evaluated."""
