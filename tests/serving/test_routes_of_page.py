"""The JSON routes of the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Server, error_of
from tests.tiny_run import read_metrics

ONE, TWO = "This is a [MASK] film.", "The [MASK] was not [MASK]."


def test_the_models_examples_and_runs_are_listed(server: Server) -> None:
    found = server.client.get("/page/models").json()
    common = {"role": "model", "mask_token": "[MASK]"}
    assert found["models"] == [
        common | {"name": "RUN", "title": "RUN", "max_tokens": 512},
        common | {"name": "RUN-2", "title": "RUN", "max_tokens": None},
    ]
    assert found["runs"] == ["RUN"]
    assert found["examples"][:2] == ["This is a [MASK] film.", "The [MASK] was [MASK]."]


def test_examples_are_short_sentences_of_the_validation_text(server: Server, served_run: Any) -> None:
    from tf_mlm.data.corpus import load_corpus

    found = served_run.loaded.found
    corpus = load_corpus(found.config.data, found.config.training.seed)
    text = " ".join(
        served_run.loaded.tokenizer.backend_tokenizer.normalizer.normalize_str(
            " ".join(corpus.validation["text"])
        ).split()
    )
    sentences = server.client.get("/page/models").json()["examples"][2:]
    assert len(sentences) == len(set(sentences)) == 5
    for sentence in sentences:
        assert sentence in text and "[" not in sentence


def test_texts_are_not_split_while_the_server_stops(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "is_stopping", True)
    answer = server.client.post("/page/segments", json={"text": "the film"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_segments_and_numbers_of_tokens(server: Server, served_run: Any) -> None:
    text = f" Isn't {ONE}\n"
    answer = server.client.post("/page/segments", json={"text": text}).json()
    assert "".join(each["text"] for each in answer["segments"]) == text
    assert [each["text"] for each in answer["segments"] if each["word"]] == [
        "Isn", "'", "t", "This", "is", "a", "film", ".",
    ]  # fmt: skip
    assert [each["text"] for each in answer["segments"] if each["mask"]] == ["[MASK]"]
    assert all(each.keys() == {"text", "word", "mask"} for each in answer["segments"])
    assert answer["num_tokens"] == {"RUN": len(served_run.loaded.tokenizer(text)["input_ids"])}


def test_fills_are_those_of_the_model(server: Server, served_run: Any) -> None:
    for model in ("RUN", "RUN-2"):
        answer = server.client.post("/page/fill", json={"model": model, "text": TWO, "top_k": 3}).json()
        (expected,) = served_run.loaded.fill(TWO, 3)
        assert len(answer["masks"]) == 2
        for mask, fills in zip(answer["masks"], expected.fills, strict=True):
            assert [(each["token_str"], each["text"]) for each in mask["fills"]] == [
                (fill.token, fill.sentence) for fill in fills
            ]
            assert [each["probability"] for each in mask["fills"]] == pytest.approx(
                [fill.probability for fill in fills], rel=1e-4
            )


def test_scores_are_those_of_the_model(server: Server, served_run: Any) -> None:
    text = " A dull film, isn't it? "
    answer = server.client.post("/page/score", json={"model": "RUN", "text": text}).json()
    (expected,) = served_run.loaded.score(text)
    assert "".join(each["text"] for each in answer["segments"]) == text
    words = [(each["text"], each["log_probability"]) for each in answer["segments"] if each["word"]]
    assert [word for word, _ in words] == [word.word for word in expected.words]
    assert [value for _, value in words] == pytest.approx([word.log_probability for word in expected.words], rel=1e-4)
    assert answer["log_probability"] == pytest.approx(expected.log_probability, rel=1e-4)
    assert all((each["log_probability"] is None) != each["word"] for each in answer["segments"])


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("segments", {}, 400, "text: is missing"),
        ("segments", {"text": 5}, 400, "text: must be a string"),
        ("segments", {"text": "x" * 20_001}, 400, "20,001 characters"),
        ("fill", {"text": ONE}, 400, "model: is missing"),
        ("fill", {"model": "NO", "text": ONE}, 404, "Model NO does not exist; the models are RUN, RUN-2."),
        ("fill", {"model": "../RUN", "text": ONE}, 404, "does not exist"),
        ("fill", {"model": ["RUN"], "text": ONE}, 400, "model: must be a string"),
        ("fill", {"model": "RUN", "text": "none"}, 400, "no [MASK]"),
        ("fill", {"model": "RUN", "text": ONE, "top_k": 1.5}, 400, "top_k"),
        ("score", {"model": "RUN", "text": ONE}, 400, "contains a mask"),
        ("score", {"model": "RUN", "text": ""}, 400, "no ordinary token"),
        ("score", {"model": "RUN", "text": "the " * 129}, 400, "129 tokens, and at most 128"),
        ("score", {"model": "RUN-2", "text": "the film"}, 400, "serve the run"),
    ],
)
def test_wrong_requests_are_refused(server: Server, path: str, body: Any, status: int, message: str) -> None:
    assert message in error_of(server.client.post(f"/page/{path}", json=body), status)


def test_a_finished_run_has_all_its_events(server: Server, finished_run: Path) -> None:
    events = read_metrics(finished_run)
    answer = server.client.get("/page/runs/RUN", params={"after": 0}).json()
    assert answer == {
        "name": "RUN",
        "events": events,
        "next": len(events),
        "state": "finished",
        "num_train_steps": 30,
        "epochs": 3,
    }
    assert server.client.get("/page/runs/RUN").json() == answer
    later = server.client.get("/page/runs/RUN", params={"after": len(events) - 2}).json()
    assert later == answer | {"events": events[-2:]}
    assert server.client.get("/page/runs/RUN", params={"after": 10**6}).json() == answer | {"events": []}
    for wrong in ("-1", "x", "1.5", "9" * 30, ""):
        assert "after" in error_of(server.client.get("/page/runs/RUN", params={"after": wrong}), 400)
    assert "Run NO does not exist" in error_of(server.client.get("/page/runs/NO"), 404)


def test_a_run_is_watched_while_it_trains(tmp_path: Path, finished_run: Path, tensorflow: None) -> None:
    from tf_mlm.config import load_config
    from tf_mlm.run.directory import RunDirectory
    from tf_mlm.serving.page import read_run

    config = load_config(finished_run / "config.toml")
    lines = (finished_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    run = RunDirectory.create(tmp_path / "run")  # as training does; it holds the lock
    watched = RunDirectory(tmp_path / "run")

    def state() -> tuple[str, int, int | None]:
        found = read_run(watched, config, 0)
        assert found["events"] == [json.loads(line) for line in lines[: found["next"]]]
        return found["state"], found["next"], found["num_train_steps"]

    assert state() == ("running", 0, None)
    with open(run.metrics_path, "w") as file:
        file.write(lines[0] + lines[1][:20])  # an incomplete last line
        file.flush()
        assert state() == ("running", 1, 30)
        file.write(lines[1][20:])
        file.flush()
        assert state() == ("running", 2, 30)
        assert read_run(watched, config, 1)["events"] == [json.loads(lines[1])]
        run.release()
        assert state() == ("stopped", 2, 30)
        file.write("".join(lines[2:]))
        file.flush()
        assert state() == ("finished", len(lines), 30)
        run._take_lock("--resume")  # watching has not taken the lock
        run.release()


def test_without_a_list_of_locks_a_run_is_training_while_its_events_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from tf_mlm.run import directory

    monkeypatch.setattr(directory, "LOCKS", tmp_path / "no-locks")
    run = directory.RunDirectory(tmp_path)
    assert not run.is_training()
    run.metrics_path.write_text("")
    assert run.is_training()
    os.utime(run.metrics_path, (0, 0))
    assert not run.is_training()


def test_a_damaged_line_is_reported(tmp_path: Path, tensorflow: None) -> None:
    from tf_mlm.config import Config
    from tf_mlm.run.directory import RunDirectory
    from tf_mlm.serving.page import read_run
    from tf_mlm.serving.requests import RequestError

    for damaged in ("{", "[]", "\ufffd"):
        (tmp_path / "metrics.jsonl").write_text(f'{{"event": "start"}}\n{damaged}\n')
        with pytest.raises(RequestError, match="Line 2 of the run's metrics.jsonl is damaged"):
            read_run(RunDirectory(tmp_path), Config(), 0)
