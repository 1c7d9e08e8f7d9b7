"""The model card: README.md of a run directory, generated from the run."""

import json
import shlex
from dataclasses import replace

from tf_mlm.config import load_config
from tf_mlm.data.masking import VALIDATION_PROBABILITY
from tf_mlm.model.architectures import ARCHITECTURES
from tf_mlm.run.card_parts import (
    Example,
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
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.events import Events
from tf_mlm.run.label_card import build_label_card
from tf_mlm.run.probe_results import load_probe, probe_section


def load_report(run: RunDirectory, events: Events | None = None, takes_strings: bool = False) -> RunReport:
    """The report of a finished run.

    Args:
        events: the events of the run including its end, if the end is not written yet.
    """
    environment = json.loads(run.environment_path.read_text())
    config, events = load_config(run.config_path), events or run.read_events()
    if origin := environment["data"].get("prepared_from"):  # name the text instead of its shards
        config = replace(config, data=replace(config.data, **origin))
    sentences = config.training.example_sentences if config.objective.name == "masked" else ()
    before = (events.start and events.start.fills) or []
    after = (events.end and events.end.fills) or []
    return RunReport(
        run_name=run.name,
        config=config,
        events=events,
        num_parameters=environment["num_parameters"],
        model_type=json.loads((run.model_path / "config.json").read_text())["model_type"],
        data=environment["data"],
        examples=[Example(*fills) for fills in zip(sentences, before, after, strict=True)],
        environment=environment,
        new_weights=environment["new_weights"],
        takes_strings=takes_strings,
        probe=load_probe(run.path),
    )


def build_model_card(report: RunReport, for_hub: bool = False) -> str:
    """The card as Markdown with the Hub's front matter. Only the last part of a local path is shown.

    Args:
        for_hub: whether the card is published with the model's files, without the rest of the run.
    """
    if report.config.objective.name != "masked":
        return build_label_card(report, for_hub)
    parts = [
        front_matter(
            report,
            task_type="fill-mask",
            task_name="Masked language modeling",
            tag="masked-language-modeling",
            metrics=["perplexity", "accuracy"],
        ),
        f"# {escaped(report.run_name)}",
        _what_it_is(report),
        summary(report, f"Validation, {VALIDATION_PROBABILITY:.0%} of the tokens masked"),
        "![Loss, perplexity and learning rate over the epochs](loss.png)",
        _how_to_load(report, for_hub),
        _examples(report),
        *([probe_section(report.probe)] if report.probe else []),
        _limits(report),
        data_section(report, _packing(report), []),
        epochs_section(
            report,
            "The training loss is the mean over the epoch, with dropout and "
            f"{100 * report.config.masking.mlm_probability:.4g}% of the tokens masked; all other metrics are "
            f"validation metrics, with {VALIDATION_PROBABILITY:.0%} masked.",
        ),
        settings_section(report),
        environment_section(report),
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_is(report: RunReport) -> str:
    config = report.config
    origin, text = origin_and_text(report)
    share = f"{100 * config.masking.mlm_probability:.4g}%"
    what = (
        f"This model is {origin}, trained with tf_mlm in TensorFlow as a masked language model on {text}. In training, "
        f"{share} of the tokens of each sequence of {config.data.sequence_length} are masked and predicted; in "
        f"validation, {VALIDATION_PROBABILITY:.0%}. The weights are those of the epoch with the lowest validation loss."
    )
    return "\n\n".join([what, *outcome(report)])


def _packing(report: RunReport) -> str:
    config = report.config.data
    if not config.line_by_line:
        padding = "no training sequence is padded" if config.streaming else "the last sequence is padded"
        packing = f"Documents are packed into sequences; {padding}."
        if config.isolate_documents:
            packing += (
                " Attention stays inside each document, and positions restart at each document, in training and in "
                "validation."
            )
        return packing
    if config.overflow == "split":
        return "Each document has its own padded sequence; a longer document is split."
    return "Each document has its own padded sequence; a longer document is truncated."


def _how_to_load(report: RunReport, for_hub: bool) -> str:
    architecture = ARCHITECTURES[report.model_type]
    sentences = report.config.training.example_sentences or ("This is a great [MASK].",)
    sentence = " ".join(sentences[0].split())
    with_its_mask = sentence.replace("[MASK]", architecture.mask_token)
    folder = "." if for_hub else "model"
    text = f"""## How to load it

In this directory, with transformers and TensorFlow:

```python
from transformers import AutoTokenizer, {architecture.stock_class_name}, pipeline

model = {architecture.stock_class_name}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, framework="tf", torch_dtype=None)
print(fill({with_its_mask!r}))
```

With tf_mlm:

```
python -m tf_mlm fill-mask . {shlex.quote(sentence)}
python -m tf_mlm evaluate .{" --dataset NAME_OR_PATH" if for_hub else ""}
```"""
    return text if for_hub else f"{text}\n\n{_with_tensorflow_alone(report, sentence)}"


def _with_tensorflow_alone(report: RunReport, sentence: str) -> str:
    if report.takes_strings:
        interface = "it takes strings and returns the filled words"
        call = f'fill = model.signatures["fill_mask"]\nprint(fill(text=tf.constant([{sentence!r}]), k=tf.constant(5)))'
    else:
        interface = "`ids` and `mask` are int32, [batch, length]"
        call = 'logits = model.signatures["logits"](input_ids=ids, attention_mask=mask)["logits"]'
    return f"""With TensorFlow alone, from the SavedModel that a finished run contains; {interface}:

```python
import tensorflow as tf

model = tf.saved_model.load("saved_model")
{call}
```"""


def _examples(report: RunReport) -> str:
    if not report.examples:
        return "## Examples\n\nThe run had no example sentences."
    rows = [[escaped(example.sentence), _fills(example.before), _fills(example.after)] for example in report.examples]
    return "## Examples\n\n" + table(["Sentence", "Before training", "After"], rows)


def _limits(report: RunReport) -> str:
    return f"""## Use and limits

- The model fills masks, and can be fine-tuned, for text like its training text. It does not generate text. Only its
  loss and accuracy on {report.data["validation_sequences_used"]:,} validation sequences were measured; they do not
  apply to other text or to other tasks.
- A fill is a likely word, not a verified fact. Errors and biases of the training text and of the starting model can
  occur in the fills; they were not evaluated."""


def _fills(fills: list[tuple[str, float]]) -> str:
    return "<br>".join(f"{escaped(token)} {probability:.1%}" for token, probability in fills)
