import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from tf_mlm.config import Config, load_config, setting_fields
from tf_mlm.run.events import Events
from tf_mlm.run.model_card import Example, RunReport, build_model_card

START: dict[str, Any] = {
    "event": "start", "epoch": 0, "step": 0, "val_loss": 2.9, "val_perplexity": 18.1741, "val_masked_accuracy": 0.4021,
    "val_masked_accuracy_top_5": 0.61,
    "unigram_entropy": 6.9312, "steps_per_epoch": 94, "num_train_steps": 282,
    "num_warmup_steps": 16,
}  # fmt: skip
EPOCHS = [
    {"event": "epoch", "epoch": 1, "step": 94, "loss": 2.7654, "val_loss": 2.5432, "val_perplexity": 12.7203,
     "val_masked_accuracy": 0.4512, "learning_rate": 1.4e-5, "tokens_per_second": 1500.4, "seconds": 1900.0},
    {"event": "epoch", "epoch": 2, "step": 188, "loss": 2.6001, "val_loss": 2.4321, "val_perplexity": 11.3828,
     "val_masked_accuracy": 0.4634,
     "val_masked_accuracy_top_5": 0.7, "learning_rate": 7.1e-6, "tokens_per_second": 1700.6, "seconds": 1800.0},
    {"event": "epoch", "epoch": 3, "step": 282, "loss": 2.5002, "val_loss": 2.4444, "val_perplexity": 11.5237,
     "val_masked_accuracy": 0.4622, "learning_rate": 0.0, "tokens_per_second": 1600.0, "seconds": 1700.0},
]  # fmt: skip
END: dict[str, Any] = {
    "event": "end", "epoch": 3, "step": 282, "best_epoch": 2, "best_val_loss": 2.4321, "seconds": 5432.1,
    "num_tokens": 1_140_000,
}  # fmt: skip
DATA = {
    "train_documents": 25000, "validation_documents": 24876, "dropped_overlap": 123, "dropped_empty": 4,
    "train_tokens": 7_812_345, "validation_tokens": 7_654_321, "train_sequences": 61034, "validation_sequences": 59800,
    "train_sequences_used": 3000, "validation_sequences_used": 1000, "fingerprint": "0123abcd-4567ef",
}  # fmt: skip
ENVIRONMENT = {
    "python": "3.11.9", "tensorflow": "2.21.0", "tf_keras": "2.21.1", "transformers": "4.54.1", "datasets": "5.0.0",
    "tokenizers": "0.21.4", "safetensors": "0.8.0", "platform": "Linux-6.1", "processor": "Xeon | 2 cores",
    "precision": "bfloat16", "precision_reason": "the processor has AMX", "xla": "clusters", "seconds": 5432.1,
    "curve": "/home/someone/plots/run.png",
}  # fmt: skip
EXAMPLES = [Example("This is a great [MASK].", [("deal", 0.1234), ("idea", 0.05)], [("film", 0.4), ("movie", 0.31)])]


def _config(**overrides: Any) -> Config:
    return load_config(overrides={name.replace("__", "."): value for name, value in overrides.items()})


def _report(**changes: Any) -> RunReport:
    events = Events.from_dicts([START, *EPOCHS, END])
    report = RunReport("imdb-1", _config(), events, 66_985_530, "distilbert", DATA, EXAMPLES, ENVIRONMENT, [],
                       takes_strings=True)  # fmt: skip
    return dataclasses.replace(report, **changes)


def _front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def _rows(card: str) -> list[list[str]]:
    """The cells of all table rows."""
    return [re.split(r" (?<!\\)\| ", line[2:-2]) for line in card.splitlines() if line.startswith("| ")]


def test_each_epoch_has_one_row() -> None:
    rows = _rows(build_model_card(_report()))
    assert ["0", "0", "–", "2.9000", "18.17", "40.21%", "61.00%", "–"] in rows
    assert ["1", "94", "2.7654", "2.5432", "12.72", "45.12%", "–", "1.400e-05"] in rows
    assert ["**2**", "188", "2.6001", "2.4321", "11.38", "46.34%", "70.00%", "7.100e-06"] in rows
    assert ["3", "282", "2.5002", "2.4444", "11.52", "46.22%", "–", "0.000e+00"] in rows


def test_the_summary_compares_the_start_with_the_best_epoch() -> None:
    rows = _rows(build_model_card(_report()))
    for row in (
        ["Loss (nats per masked token)", "2.9000", "2.4321"],
        ["Perplexity", "18.17", "11.38"],
        ["Masked accuracy (top 1)", "40.21%", "46.34%"],
        ["Masked accuracy (top 5)", "61.00%", "70.00%"],
        ["Parameters", "66,985,530"],
        ["Training sequences", "3,000 of 128 tokens"],
        ["Epochs", "3 of 3"],
        ["Best epoch", "2"],
        ["Unigram entropy (the loss of predicting from token frequencies alone)", "6.9312"],
        ["Tokens seen in training, without padding", "1,140,000"],
        ["Time", "1 h 30 min"],
        ["Tokens per second, without padding (median of the epochs)", "1,600"],
    ):
        assert row in rows


def test_the_card_has_data_environment_and_examples() -> None:
    card = build_model_card(_report())
    rows = _rows(card)
    assert ["Training", "25,000", "7,812,345", "7,812,345", "61,034", "3,000"] in rows
    assert ["Validation", "24,876", "7,654,321", "7,654,321", "59,800", "1,000"] in rows
    assert "they are also training documents: 123\n" in card
    assert "Empty documents dropped: 4\n" in card
    assert "`0123abcd-4567ef`" in card
    assert ["tf keras", "2.21.1"] in rows
    assert ["processor", r"Xeon \| 2 cores"] in rows
    assert ["This is a great [MASK].", "deal 12.3%<br>idea 5.0%", "film 40.0%<br>movie 31.0%"] in rows
    assert "(loss.png)" in card


def test_the_card_shows_tokens_before_and_after_packing() -> None:
    card = build_model_card(_report(data=DATA | {"train_tokens_packed": 7_812_000}))
    assert ["Training", "25,000", "7,812,345", "7,812,000", "61,034", "3,000"] in _rows(card)


def test_the_card_reports_isolated_documents() -> None:
    sentence = "Attention stays inside each document, and positions restart at each document"
    assert sentence in " ".join(build_model_card(_report(config=_config(data__isolate_documents="true"))).split())
    assert sentence not in build_model_card(_report())


def test_each_setting_and_each_derived_number_has_one_row() -> None:
    rows = {row[0]: row[1] for row in _rows(build_model_card(_report(config=_config(optimizer__learning_rate="3e-4"))))}
    for name in setting_fields():
        assert f"`{name}`" in rows
    assert rows["`optimizer.learning_rate`"] == "0.0003"
    assert rows["`data.line_by_line`"] == "false"
    assert rows["`data.text_column`"] == "''"
    assert rows["`model.vocab_size`"] == "not used"
    assert (rows["An epoch"], rows["Warmup"], rows["All"]) == ("94", "16", "282")
    rows = {row[0]: row[1] for row in _rows(build_model_card(_report(config=_config(model__name=""))))}
    assert rows["`model.vocab_size`"] == "8000"


def test_the_front_matter_has_the_fields_of_the_hub() -> None:
    card = build_model_card(_report())
    front = _front_matter(card)
    assert front["base_model"] == "distilbert-base-uncased"
    assert front["datasets"] == "stanfordnlp/imdb"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "fill-mask"
    assert front["metrics"] == ["perplexity", "accuracy"]
    assert front["tags"] == ["tensorflow", "masked-language-modeling", "distilbert", "tf_mlm"]
    assert not {"license", "language"} & set(front)  # a run does not record them

    data: Any = ModelCard(card).data
    assert data.model_name == "imdb-1"
    assert {(r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("loss", 2.4321), ("perplexity", 11.3828), ("accuracy", 0.4634),
    }  # fmt: skip
    assert {(r.task_type, r.dataset_type, r.dataset_split) for r in data.eval_results} == {
        ("fill-mask", "stanfordnlp/imdb", "test"),
    }  # fmt: skip
    parsed: Any = ModelCardData(**front)
    assert parsed.to_dict() == data.to_dict() == front


def test_the_base_model_is_a_hub_model_whose_weights_were_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def front(**overrides: str) -> dict[str, Any]:
        return _front_matter(build_model_card(_report(config=_config(**overrides))))

    assert front(model__name="bert-base-cased")["base_model"] == "bert-base-cased"
    for overrides in (
        {"model__name": ""},
        {"model__from_config": "true"},
        {"model__name": "../models/minilm"},
        {"model__name": str(tmp_path)},
    ):
        assert "base_model" not in front(**overrides)
    for dataset in ("sample", str(tmp_path), "texts/*.txt"):
        assert "datasets" not in front(data__dataset=dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "reviews").mkdir(parents=True)
    assert "datasets" not in front(data__dataset="org/reviews")  # a directory written like a Hub name


def test_a_validation_split_is_named_only_if_there_is_one() -> None:
    report = _report(data=DATA | {"held_out": True})
    assert _front_matter(build_model_card(report))["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    assert "(5%) are held out at random" in build_model_card(report)


def test_the_card_contains_no_local_path() -> None:
    config = _config(model__name="/home/someone/models/minilm", data__dataset="/home/someone/private/reviews/")
    card = build_model_card(_report(config=config))
    assert "someone" not in card
    assert "the local model minilm" in card
    assert "the local text reviews" in card
    assert _front_matter(card)["model-index"][0]["results"][0]["dataset"]["name"] == "reviews"


def test_the_card_names_the_origin_of_the_weights() -> None:
    card = build_model_card(_report(config=_config(model__name="")))
    assert "This model is a new DistilBERT with a new vocabulary, trained" in card
    assert "with random weights, trained" in build_model_card(_report(config=_config(model__from_config="true")))
    assert "the built-in sample corpus" in build_model_card(_report(config=_config(data__dataset="sample")))
    card = build_model_card(_report(new_weights=["vocab_transform", "vocab_projector"]))
    assert (
        "Newly initialized weights (missing from the starting checkpoint): `vocab_transform`, `vocab_projector`."
        in card
    )


def test_the_card_names_the_weights_that_were_trained() -> None:
    card = build_model_card(_report(config=_config(model__train=["layer.5", "head"])))
    assert "Only a part of the weights was trained (`model.train`: `layer.5`, `head`); the others were frozen." in card
    assert "Only a part" not in build_model_card(_report())


@pytest.mark.parametrize(
    ("model_type", "architecture", "sentence"),
    [
        ("distilbert", "TFDistilBertForMaskedLM", "'A [MASK] film.'"),
        ("bert", "TFBertForMaskedLM", "'A [MASK] film.'"),
        ("roberta", "TFRobertaForMaskedLM", "'A <mask> film.'"),
        ("albert", "TFAlbertForMaskedLM", "'A [MASK] film.'"),
    ],
)
def test_the_card_shows_how_to_load_the_model(model_type: str, architecture: str, sentence: str) -> None:
    config = load_config(overrides={"training.example_sentences": ["A [MASK] film."]})
    card = build_model_card(_report(model_type=model_type, config=config))
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f'model = {architecture}.from_pretrained("model")' in code
    assert f"print(fill({sentence}))" in code
    assert "python -m tf_mlm fill-mask . 'A [MASK] film.'" in card


@pytest.mark.parametrize("takes_strings", [True, False])
def test_the_card_calls_an_existing_signature_of_the_saved_model(takes_strings: bool) -> None:
    code = build_model_card(_report(takes_strings=takes_strings)).split("```python\n")[2].split("```")[0]
    compile(code, "card", "exec")
    assert ('signatures["fill_mask"]' in code) == ("text=" in code) == takes_strings
    assert ('signatures["logits"](input_ids=' in code) != takes_strings


def test_text_cannot_break_a_table() -> None:
    example = Example("a|b `c`\nd *e* [MASK](f) <g>", [("|", 0.5), ("`", 0.25)], [("__x__", 0.5), ("", 0.1)])
    card = build_model_card(_report(examples=[example]))
    (row,) = [row for row in _rows(card) if "MASK](f" in row[0] or r"MASK]\(f" in row[0]]
    assert row == [
        r"a\|b \`c\` d \*e\* [MASK]\(f) \<g\>", r"\| 50.0%<br>\` 25.0%", r"\_\_x\_\_ 50.0%<br> 10.0%",
    ]  # fmt: skip


def _not_finite(event: dict[str, Any]) -> dict[str, Any]:
    return event | {"val_loss": math.nan, "val_perplexity": math.inf, "loss": math.nan, "tokens_per_second": None}


@pytest.mark.parametrize(
    ("events", "epochs", "time"),
    [
        ([], "0 of 20", "0 min 00 s"),
        ([START], "0 of 3", "0 min 00 s"),
        ([START, EPOCHS[0]], "1 of 3", "31 min 40 s"),
        ([START, EPOCHS[0], _not_finite(EPOCHS[1])], "2 of 3", "1 h 01 min"),
        ([_not_finite(START), _not_finite(EPOCHS[0])], "1 of 3", "31 min 40 s"),
        ([START, *EPOCHS, END], "3 of 3", "1 h 30 min"),
    ],
)
def test_the_card_of_an_unfinished_run_has_no_placeholders(
    events: list[dict[str, Any]], epochs: str, time: str
) -> None:
    card = build_model_card(_report(events=Events.from_dicts(events), examples=[] if len(events) < 2 else EXAMPLES))
    rows = _rows(card)
    assert ["Epochs", epochs] in rows
    assert ["Time", time] in rows
    assert ("**This run has not finished.**" in card) == (END not in events)
    assert not re.search(r"\b(None|nan|inf|TODO|More [Ii]nformation [Nn]eeded)\b", card.replace("torch_dtype=None", ""))
    assert ("model-index" in _front_matter(card)) == (EPOCHS[0] in events)
    ModelCard(card)


def test_the_card_reports_that_no_epoch_was_better_than_the_start() -> None:
    worse = [epoch | {"val_loss": 3.1, "val_perplexity": 22.2} for epoch in EPOCHS]
    card = build_model_card(_report(events=Events.from_dicts([START, *worse, END | {"best_epoch": 0}])))
    assert "**No epoch was better than the model before training.**" in card
    assert ["Best epoch", "0"] in _rows(card) and ["**0**", "0"] == next(r[:2] for r in _rows(card) if "**" in r[0])
    assert "No epoch was better" not in build_model_card(_report())


def test_the_card_gives_the_reason_of_early_stopping() -> None:
    events = Events.from_dicts([START, *EPOCHS[:2], END | {"epoch": 2, "stopped_early": True}])
    card = build_model_card(_report(events=events, config=_config(training__early_stopping_patience="1")))
    assert "Training stopped early, after epoch 2: the validation loss had not improved for 1 epoch." in card
    assert "stopped early" not in build_model_card(_report())


def test_the_card_gives_the_mask_ratio_of_each_metric() -> None:
    card = build_model_card(_report(config=_config(masking__mlm_probability="0.25")))
    assert (
        "In training, 25% of the tokens of each sequence of 128 are masked and predicted; in validation, 15%." in card
    )
    assert ["Validation, 15% of the tokens masked", "Before training", "Best epoch"] in _rows(card)
    assert "with dropout and 25% of the tokens masked" in card


def test_an_infinite_perplexity_is_not_finite_in_the_card() -> None:
    events = Events.from_dicts([START, EPOCHS[0] | {"val_loss": 800.0, "val_perplexity": math.inf}])
    card = build_model_card(_report(events=events))
    assert "not finite" in card and "inf" not in re.sub(r"[Ii]nf\w+", "", card)


def test_neither_the_card_nor_the_plot_imports_tensorflow() -> None:
    code = "import sys, tf_mlm.run.model_card, tf_mlm.run.plotting; print({'tensorflow', 'transformers'} & set(sys.modules))"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
