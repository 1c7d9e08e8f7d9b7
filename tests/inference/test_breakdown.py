"""`tf-mlm evaluate`: draws of the masks, groups of tokens, a baseline."""

import json
import math
import os
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tiny_run import inside, read_metrics
from tf_mlm.commands.main import main
from tf_mlm.config import ModelConfig, load_config

Capture = pytest.CaptureFixture[str]
METRICS = ("loss", "perplexity", "masked_accuracy", "masked_accuracy_top_5")


@pytest.fixture(scope="module")
def other_model(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the run with changed weights."""
    from tf_mlm.model.loading import load_trained
    from tf_mlm.model.saving import save_model

    folder = tmp_path_factory.mktemp("other") / "model"
    model, tokenizer = load_trained(str(finished_run / "model"))
    numbers = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(weight.numpy() + numbers.normal(0, 0.05, weight.shape))
    save_model(model, tokenizer, folder)
    return folder


def evaluate(capsys: Capture, *arguments: str | Path) -> dict[str, Any]:
    capsys.readouterr()
    with inside(Path()):
        assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def evaluate_with(run: Path, **training: Any) -> dict[str, Any]:
    """The breakdown of a run over two draws, with other settings of the section `training`."""
    from tf_mlm.inference.evaluate import evaluate_model

    config = load_config(run / "config.toml")
    config = replace(config, model=ModelConfig(name=str(run / "model")), training=replace(config.training, **training))
    with inside(Path()):
        found = evaluate_model(config, own_data=True, num_draws=2, with_breakdown=True)
    return json.loads(json.dumps(found.as_dict()))


class Oracle:
    """The masked tokens of some draws and their metrics, in plain Python and numpy.

    The logits of the stock models at all positions are the only result of a library.
    """

    def __init__(self, run: Path, models: dict[str, Path], num_draws: int) -> None:
        import transformers

        from tf_mlm.data.corpus import load_corpus
        from tf_mlm.data.pipeline import build_collator
        from tf_mlm.data.sequences import load_sequences

        config = load_config(run / "config.toml")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
        corpus = load_corpus(config.data, config.training.seed)
        sequences = load_sequences(
            corpus.validation, corpus.validation_fingerprint, self.tokenizer, config.data, "validation"
        )
        self.ids = np.array(sequences.input_ids)
        counts = Counter(int(each) for each in self.ids.flat if each not in self.tokenizer.all_special_ids)
        order = sorted(counts, key=lambda each: (-counts[each], each))
        self.ranks = {token_id: rank for rank, token_id in enumerate(order, start=1)}
        rows = [int(row) for row in sequences.draw_rows(config.data.num_validation_sequences, config.training.seed)]
        collator = build_collator(sequences, self.tokenizer, config.masking, config.training.seed, validation=True)
        self.tokens: list[dict[str, Any]] = []
        for draw in range(num_draws):
            batch = replace(collator, draw=draw + 1)([{"epoch": 0, "index": row} for row in rows])
            features = {name: batch[name] for name in ("input_ids", "attention_mask")}
            logits = {
                key: transformers.TFDistilBertForMaskedLM.from_pretrained(path)(**features).logits.numpy()
                for key, path in models.items()
            }
            for number, row in enumerate(rows):
                for position in range(self.ids.shape[1]):
                    if batch["labels"][number, position] == -100:
                        continue
                    label, shown = int(self.ids[row, position]), int(batch["input_ids"][number, position])
                    token: dict[str, Any] = {
                        "draw": draw,
                        "row": row,
                        "position": position,
                        "id": label,
                        "shown": shown,
                    }
                    for key in models:
                        token[key] = self.score(logits[key][number, position].astype(np.float64), label)
                    self.tokens.append(token)

    @staticmethod
    def score(logits: np.ndarray, label: int) -> dict[str, float]:
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        num_above = int((probabilities > probabilities[label]).sum())
        return {
            "loss": -math.log(probabilities[label]),
            "masked_accuracy": float(num_above == 0),
            "masked_accuracy_top_5": float(num_above < 5),
        }

    def group_of(self, title: str, token: dict[str, Any]) -> str:
        """The beginning of the name of the row that has the token."""
        if title == "all":
            return "all masked tokens"
        if title == "treatment":
            names = {self.tokenizer.mask_token_id: "[MASK]", token["id"]: "kept"}
            return names.get(token["shown"], "random token")
        if title == "frequency":
            limits = {10: "rank 1 to", 100: "rank 11 to", 1000: "rank 101 to"}
            return next(name for limit, name in limits.items() if self.ranks[token["id"]] <= limit)
        if title == "part of the word":
            row, position = token["row"], token["position"]
            piece, after = self.tokenizer.convert_ids_to_tokens(self.ids[row, position : position + 2].tolist() + [0])[
                :2
            ]
            return (
                "later piece" if piece.startswith("##") else "first piece" if after.startswith("##") else "whole word"
            )
        assert title == "part of the sequence"
        return ("first", "second", "third", "last")[token["position"] // 8]

    def metrics(self, tokens: list[dict[str, Any]], key: str) -> dict[str, float]:
        """Means over tokens; with the key `difference`, of the model minus the baseline."""
        if key == "difference":
            model, baseline = self.metrics(tokens, "model"), self.metrics(tokens, "baseline")
            return {name: model[name] - baseline[name] for name in model}
        means = {
            name: sum(token[key][name] for token in tokens) / len(tokens) for name in METRICS if name != "perplexity"
        }
        return means | {"perplexity": math.exp(means["loss"])}


def test_every_number_equals_a_plain_computation(finished_run: Path, other_model: Path, capsys: Capture) -> None:
    found = evaluate(capsys, finished_run, "--mask-draws", "3", "--baseline", other_model)
    oracle = Oracle(finished_run, {"model": finished_run / "model", "baseline": other_model}, num_draws=3)
    by_draw = [[token for token in oracle.tokens if token["draw"] == draw] for draw in range(3)]
    for name in METRICS:
        values = [oracle.metrics(tokens, "model")[name] for tokens in by_draw]
        assert found[name] == pytest.approx(values[0], rel=1e-6)
        assert found["draws"][name]["values"] == pytest.approx(values, rel=1e-6)
        assert found["draws"][name]["mean"] == pytest.approx(sum(values) / 3, rel=1e-6)
        assert found["draws"][name]["deviation"] == pytest.approx(statistics.stdev(values), rel=1e-4)

    breakdown = found["breakdown"]
    titles = ["all", "treatment", "frequency", "part of the word", "part of the sequence"]
    assert [group["title"] for group in breakdown["groups"]] == titles
    num_rows = 0
    for group in breakdown["groups"]:
        members = defaultdict(list)
        for token in oracle.tokens:
            members[oracle.group_of(group["title"], token)].append(token)
        assert sum(row["masked_tokens"] for row in group["rows"]) == len(oracle.tokens)
        for row in group["rows"]:
            (tokens,) = [members.pop(name) for name in list(members) if row["name"].startswith(name)]
            assert row["masked_tokens"] == len(tokens)
            for key in ("model", "baseline", "difference"):
                expected = oracle.metrics(tokens, key)
                for name, score in row["scores"][key].items():
                    assert score["value"] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), (row["name"], key, name)
                    values = [oracle.metrics([t for t in tokens if t["draw"] == draw], key)[name] for draw in range(3)]
                    assert score["draws"] == pytest.approx(values, rel=1e-5, abs=1e-4)
                    assert score["deviation"] == pytest.approx(statistics.stdev(values), rel=1e-3, abs=1e-4)
            num_rows += 1
        assert not members
    assert num_rows == 14  # the vocabulary of 300 has no token of a rank above 1,000

    occurrences = defaultdict(list)
    for token in oracle.tokens:
        occurrences[token["id"]].append(token)
    frequent = {index: oracle.metrics(each, "model")["loss"] for index, each in occurrences.items() if len(each) >= 10}
    change = {index: loss - oracle.metrics(occurrences[index], "baseline")["loss"] for index, loss in frequent.items()}
    assert len(frequent) > 15
    improved = [index for index in sorted(change, key=lambda each: change[each]) if change[index] < 0]
    worsened = [index for index in sorted(change, key=lambda each: -change[each]) if change[index] > 0]
    order = {
        "greatest loss": sorted(frequent, key=lambda each: -frequent[each]),
        "most improved": improved,
        "most worsened": worsened,
    }
    assert improved
    for title, expected_ids in order.items():
        listed = breakdown["token_tables"][title]
        assert [row["token_id"] for row in listed] == expected_ids[:10], title
        for row in listed:
            tokens = occurrences[row["token_id"]]
            assert row["token"] == oracle.tokenizer.convert_ids_to_tokens(row["token_id"])
            assert row["masked_tokens"] == len(tokens)
            assert row["losses"]["model"] == pytest.approx(frequent[row["token_id"]], rel=1e-5)
            assert row["losses"]["difference"] == pytest.approx(change[row["token_id"]], abs=1e-5)
            assert oracle.ids[row["sequence"], row["position"]] == row["token_id"]
            assert f"[{row['token'].removeprefix('##')}]" in row["example"]
            value = {
                (token["draw"] + 1, token["row"], token["position"]): token["model"]["loss"]
                - (0 if title == "greatest loss" else token["baseline"]["loss"])
                for token in tokens
            }
            mean = frequent[row["token_id"]] if title == "greatest loss" else change[row["token_id"]]
            distance = abs(value[row["draw"], row["sequence"], row["position"]] - mean)
            assert distance == pytest.approx(min(abs(each - mean) for each in value.values()), abs=1e-5)


def test_the_first_draw_is_that_of_training_to_the_last_digit(finished_run: Path, capsys: Capture) -> None:
    plain = evaluate(capsys, finished_run)
    assert plain["loss"] == read_metrics(finished_run)[-1]["best_val_loss"]
    draws = evaluate(capsys, finished_run, "--mask-draws", "3")
    assert {name: draws[name] for name in plain} == plain and set(draws) - set(plain) == {"draws"}
    values = draws["draws"]["loss"]["values"]
    assert values[0] == plain["loss"] and len(set(values)) == 3
    in_depth = evaluate(capsys, finished_run, "--mask-draws", "2", "--breakdown")
    assert {name: in_depth[name] for name in plain} == plain
    assert set(in_depth) - set(plain) == {"draws", "breakdown"}
    assert in_depth["draws"]["loss"]["values"] == values[:2]  # the second draw does not depend on their number
    assert evaluate(capsys, finished_run, "--mask-draws", "2", "--breakdown") == in_depth


def assert_close(found: Any, expected: Any, **tolerance: Any) -> None:
    """Counts are equal and numbers close. The tables of tokens are not compared: rounding can reorder them."""
    for group, same in zip(found["breakdown"]["groups"], expected["breakdown"]["groups"], strict=True):
        for row, other in zip(group["rows"], same["rows"], strict=True):
            assert (row["name"], row["masked_tokens"]) == (other["name"], other["masked_tokens"])
            for name in METRICS:
                values = [each["scores"]["model"][name]["value"] for each in (row, other)]
                assert values[0] == pytest.approx(values[1], **tolerance), (row["name"], name)


def test_the_batch_size_changes_no_result(finished_run: Path) -> None:
    expected = evaluate_with(finished_run)
    for batch_size in (7, 60):
        found = evaluate_with(finished_run, batch_size=batch_size)
        assert_close(found, expected, rel=1e-5)
        for title, rows in expected["breakdown"]["token_tables"].items():
            assert [row["token"] for row in found["breakdown"]["token_tables"][title]] == [row["token"] for row in rows]


def test_bfloat16_changes_only_the_rounding(finished_run: Path) -> None:
    found = evaluate_with(finished_run, precision="bfloat16")
    expected = evaluate_with(finished_run)
    assert_close(found, expected, rel=0.05, abs=0.05)
    loss = [each["breakdown"]["groups"][0]["rows"][0]["scores"]["model"]["loss"]["value"] for each in (found, expected)]
    assert loss[0] != loss[1] and loss[0] == pytest.approx(loss[1], rel=2e-3)


def test_the_number_of_devices_changes_no_result(finished_run: Path, capsys: Capture) -> None:
    """`evaluate` uses the first device."""
    flags = ["--mask-draws", "2", "--breakdown", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tf_mlm", "evaluate", str(finished_run), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_MLM_LOGICAL_DEVICES": "2"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = evaluate(capsys, finished_run, *flags[:-1])
    assert_close(found, expected, rel=1e-6)


def test_the_tables_and_the_plot_have_every_row(
    finished_run: Path, other_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    plot = tmp_path / "breakdown.png"
    flags = [str(finished_run), "--mask-draws", "2", "--baseline", str(other_model)]
    found = evaluate(capsys, *flags, "--plot", plot)
    png = plot.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(png[16:20]) == 2000
    plot.unlink()
    with inside(Path()):
        assert main(["evaluate", *flags, "--plot", str(plot)]) == 0
    assert plot.read_bytes() == png
    out = capsys.readouterr().out
    assert out.endswith(f"\nplot in {plot}\n")
    lines = out.splitlines()
    loss = found["draws"]["loss"]
    assert lines[1].split()[-4:] == [f"{found['loss']:.4f}", f"{loss['mean']:.4f}", "±", f"{loss['deviation']:.4f}"]
    for group in found["breakdown"]["groups"]:
        for row in group["rows"]:
            (line,) = [line for line in lines if line.strip().startswith(row["name"])]
            for key in ("model", "baseline"):
                assert (
                    f" {row['scores'][key]['loss']['value']:.4f} ± {row['scores'][key]['loss']['deviation']:.4f}"
                    in line
                )
            assert f" {row['scores']['difference']['loss']['value']:+.4f} ± " in line
    for title, rows in found["breakdown"]["token_tables"].items():
        start = next(number for number, line in enumerate(lines) if line.startswith(title))
        for row, line in zip(rows, lines[start + 2 :], strict=False):
            assert line.split()[:2] == [row["token"], str(row["masked_tokens"])] and line.endswith(row["example"])


def test_a_model_compared_with_itself_neither_improves_nor_worsens(finished_run: Path, capsys: Capture) -> None:
    found = evaluate(capsys, finished_run, "--baseline", finished_run)["breakdown"]
    assert found["models"] == {"model": str(finished_run / "model"), "baseline": str(finished_run / "model")}
    for group in found["groups"]:
        for row in group["rows"]:
            assert row["scores"]["model"] == row["scores"]["baseline"]
            assert {score["value"] for score in row["scores"]["difference"].values()} == {0}
            assert {score["deviation"] for score in row["scores"]["difference"].values()} == {None}
    assert found["token_tables"]["most improved"] == found["token_tables"]["most worsened"] == []


def test_a_draw_without_tokens_of_a_group_has_no_value() -> None:
    from tf_mlm.inference.breakdown import Score

    assert Score.of(2.0, [1.0, math.nan, 3.0]) == Score(2.0, [1.0, None, 3.0], math.sqrt(2))
    assert Score.of(1.0, [1.0, math.nan]).deviation is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask-draws", "0"], "--mask-draws 0: must be at least 1"),
        (["--mask-draws", "many"], "--mask-draws: invalid int value: 'many'"),
        (["--plot", "missing/x.png"], "--plot missing/x.png: cannot be written: No such file or directory"),
        (["--plot", "."], "--plot .: cannot be written: it is a directory"),
        (["--baseline", "./missing"], "./missing"),
        (["--baseline", "OTHER"], "has another tokenizer (40 tokens)"),
    ],
)
def test_wrong_requests_are_refused(
    finished_run: Path, tmp_path: Path, capsys: Capture, flags: list[str], message: str
) -> None:
    from tf_mlm.model.loading import load_trained
    from tf_mlm.model.saving import save_model
    from tf_mlm.model.tokenizer import build_tokenizer

    if "OTHER" in flags:
        model, _ = load_trained(str(finished_run / "model"))
        save_model(model, build_tokenizer(["the film was long and boring"] * 5, 40), tmp_path / "OTHER")
    with inside(tmp_path):
        assert main(["evaluate", str(finished_run), *flags]) == 2
    output = capsys.readouterr()
    assert message in output.err and len(output.err.splitlines()) == 1 and not output.out
    assert [path.name for path in tmp_path.iterdir()] in ([], ["OTHER"])


def test_a_plot_that_cannot_be_written_is_reported_after_the_results(
    finished_run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf_mlm.commands import evaluate as command

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_atomically", fail)
    with inside(Path()):
        assert main(["evaluate", str(finished_run), "--plot", str(tmp_path / "x.png")]) == 4
    output = capsys.readouterr()
    assert "all masked tokens" in output.out
    assert output.err == ("error: I/O error: [Errno 28] No space left on device; files already written are intact\n")
