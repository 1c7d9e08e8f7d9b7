"""The recipe: from settings to a trained model, its curves, card and export. This module alone knows all others."""

import contextlib
import errno
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
import xxhash

from tf_mlm import runtime
from tf_mlm.atomic_files import atomic_directory, write_atomically
from tf_mlm.config import Config, load_config
from tf_mlm.data.corpus import load_corpus
from tf_mlm.data.masking import num_slots
from tf_mlm.data.pipeline import rows_of_batch
from tf_mlm.data.prepared import PreparedData, describe_data, prepare_data
from tf_mlm.errors import Interrupted, NonFiniteLoss, Refused, as_os_error
from tf_mlm.export.saved_model import export_saved_model
from tf_mlm.inference.fill_mask import fill_masks
from tf_mlm.model.loading import load_model, load_model_config, load_tokenizer, load_trained
from tf_mlm.model.metrics import perplexity
from tf_mlm.model.optimizer import build_optimizer, build_schedule
from tf_mlm.run.checkpoint import (
    Progress,
    load_checkpoint,
    model_variables,
    restore_best_model,
    restore_variables,
    save_checkpoint,
)
from tf_mlm.run.directory import RunDirectory
from tf_mlm.run.model_card import Example, RunReport, build_model_card
from tf_mlm.run.plotting import best_epoch
from tf_mlm.run.tensorboard import TensorBoardFiles
from tf_mlm.training import callbacks
from tf_mlm.training.plan import RunLength, describe_plan, describe_trial, disk_bytes, measure_matmul_peak, run_trial

_NUM_FILLS = 5
_SEQUENCES_SHOWN = 100  # in an error; all are in metrics.jsonl


def train(config: Config, run: RunDirectory) -> None:
    """Train as `config` says, from the start or from the newest checkpoint of `run`, and leave the results there.

    Raises:
        Refused: the data or the model cannot be had or do not fit; nothing was trained.
        NonFiniteLoss: the loss was no longer a number, for the second time.
        Interrupted: a signal asked the run to stop; a checkpoint was written.
    """
    run.write_config(config)
    model, tokenizer, data, length, environment = prepare(config)
    print(describe(config, data, model, length, environment, run.path), flush=True)
    run.check_disk(disk_bytes(config, model))

    progress = restore(model, run, environment["fingerprint"])
    run.cut_events(progress.metrics_bytes)
    run.write_environment(environment | {"curve": str(run.choose_curve())})
    validation_dataset = data.validation_dataset(config, tokenizer)
    if progress.metrics_bytes == 0:
        print("validating the model before training", flush=True)
        start = start_event(config, model, tokenizer, data, length, validation_dataset)
        if config.training.measure_matmul_peak:
            start["matmul_peak_tokens_per_second"] = measure_matmul_peak(config, model, environment["precision"])
        run.append_event(start)
    while True:
        try:
            progress = fit(config, run, model, tokenizer, data, length, validation_dataset, progress)
            break
        except NonFiniteLoss as error:
            progress = roll_back(config, run, model, tokenizer, data, error)
    export(config, run, progress)


def prepare(config: Config) -> tuple[Any, Any, PreparedData, RunLength, dict[str, Any]]:
    """The compiled model, its tokenizer, the data, the length of the training, and what it all runs on."""
    seed = config.training.seed
    precision = runtime.choose_precision(config.training.precision)
    keras.mixed_precision.set_global_policy(precision.policy)  # before the model is built, or it has no effect
    keras.utils.set_random_seed(seed)
    if config.model.name:
        load_model_config(config.model)  # refused before the data is prepared, which may take long
    corpus = load_corpus(config.data, seed)
    tokenizer = load_tokenizer(config.model, corpus.train["text"])
    strategy = runtime.choose_strategy(config.distribution.strategy)
    parts = config.training.accumulate_steps * strategy.num_replicas_in_sync
    if config.training.batch_size % parts:
        raise Refused(
            f"training.batch_size = {config.training.batch_size}: must be a multiple of {parts}, accumulate_steps "
            f"times the {strategy.num_replicas_in_sync} devices"
        )
    xla = runtime.choose_xla(config.training.xla)
    with strategy.scope():
        model, new_weights = load_model(config.model, tokenizer, config.data.sequence_length)
    data = prepare_data(config, corpus, tokenizer)
    length = RunLength.of(config, len(data.train_rows))
    with strategy.scope():
        model.compile(
            build_optimizer(config.optimizer, length.num_train_steps, precision.name),
            max_masked_per_sequence=num_slots(config.data.sequence_length, config.masking.mlm_probability),
            accumulate_steps=config.training.accumulate_steps,
            clip_norm=config.optimizer.clip_norm,
            seed=seed,
            jit_compile=xla == "step",
        )
    environment = runtime.versions() | {
        "platform": platform.platform(),
        "processor": runtime.processor()[0],
        "precision": precision.name,
        "precision_reason": precision.reason,
        "xla": xla,
        "num_replicas": strategy.num_replicas_in_sync,
        "num_parameters": model.count_params(),
        "new_weights": new_weights,
        "data": data.facts,
        "fingerprint": fingerprint(config, model, tokenizer, precision.name, data),
    }
    return model, tokenizer, data, length, environment


def fingerprint(config: Config, model: Any, tokenizer: Any, precision: str, data: PreparedData) -> str:
    """Hash of what decides the numbers of a run: settings, precision, text, vocabulary, starting weights."""
    digest = xxhash.xxh3_128()
    decisive = asdict(config)
    decisive.pop("checkpoint")
    decisive["training"].pop("log_every")
    digest.update(json.dumps([decisive, precision, data.facts["fingerprint"]], sort_keys=True).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for weight in model.weights:
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def describe(
    config: Config, data: PreparedData, model: Any, length: RunLength, environment: dict[str, Any], run_path: Path
) -> str:
    lines = [describe_data(data.facts)]
    if environment["new_weights"]:
        names = ", ".join(environment["new_weights"])
        lines.append(
            f"fresh      {len(environment['new_weights']):>10,} weights that {config.model.name} lacks: {names}"
        )
    model.summary(line_length=80, print_fn=lines.append)
    lines.append(describe_plan(config, length, model, environment["precision"], run_path))
    lines.append(
        f"precision  {environment['precision']:>10} because {environment['precision_reason']}; XLA {environment['xla']}"
    )
    return "\n".join(lines)


def restore(model: Any, run: RunDirectory, fingerprint: str) -> Progress:
    """Put the newest checkpoint, if there is one, into the model's and the optimizer's variables."""
    checkpoint = load_checkpoint(run.checkpoints_path, fingerprint)
    if checkpoint is None:
        return Progress(0, (0.0, 0.0), metrics_bytes=0, seconds=0.0, fingerprint=fingerprint)
    progress, arrays = checkpoint
    restore_variables(model_variables(model), arrays)
    print(f"resumed    at step {progress.step:,}", flush=True)
    return progress


def start_event(
    config: Config, model: Any, tokenizer: Any, data: PreparedData, length: RunLength, validation_dataset: Any
) -> dict[str, Any]:
    """The model before training: its validation metrics, and what it fills in."""
    logs = model.evaluate(validation_dataset, verbose=0, return_dict=True)
    if not math.isfinite(logs["loss"]):
        raise Refused(
            f"model.name = {config.model.name!r}: before training its loss is not a finite number; its weights are "
            "damaged or too large; name another model, or set training.precision = 'float32'"
        )
    return {
        "event": "start",
        "epoch": 0,
        "step": 0,
        "val_loss": logs["loss"],
        "val_perplexity": perplexity(logs["loss"]),
        "val_masked_accuracy": logs["masked_accuracy"],
        "val_masked_accuracy_top_5": logs["masked_accuracy_top_5"],
        "unigram_entropy": data.unigram_entropy,
        "steps_per_epoch": length.steps_per_epoch,
        "num_train_steps": length.num_train_steps,
        "num_warmup_steps": length.num_warmup_steps,
        "fills": fill_examples(config, model, tokenizer),
    }


def fill_examples(config: Config, model: Any, tokenizer: Any) -> list[list[tuple[str, float]]]:
    """For each example sentence, the likeliest tokens of its first gap."""
    return [
        [(fill.token, fill.probability) for fill in fill_masks(model, tokenizer, sentence, _NUM_FILLS)[0]]
        for sentence in config.training.example_sentences
    ]


def fit(
    config: Config,
    run: RunDirectory,
    model: Any,
    tokenizer: Any,
    data: PreparedData,
    length: RunLength,
    validation_dataset: Any,
    progress: Progress,
) -> Progress:
    """Train from `progress` to the end, or to where early stopping ends it.

    Returns:
        How far the run has come then.
    """
    events = run.read_events()
    epochs_done = [event for event in events if event["event"] == "epoch"]
    best = best_epoch(events)
    patience = config.training.early_stopping_patience
    lines = callbacks.ProgressLines(length.num_train_steps, length.epochs, progress.step)
    board = TensorBoardFiles(run.tensorboard_path, events)
    log = callbacks.MetricsLog(
        [run.append_event, board.write, lines.show],
        progress=progress,
        schedule=build_schedule(config.optimizer, length.num_train_steps),
        steps_per_epoch=length.steps_per_epoch,
        num_train_steps=length.num_train_steps,
        tokens_per_step=config.training.batch_size * config.data.sequence_length,
        log_every=config.training.log_every,
        max_bad_steps=config.training.max_bad_steps,
        ceiling=events[0].get("matmul_peak_tokens_per_second"),
    )
    checkpoints = callbacks.Checkpoints(
        run,
        log,
        **asdict(config.checkpoint),
        steps_per_epoch=length.steps_per_epoch,
        progress=progress,
    )
    curves = callbacks.Curves(run)
    around = [
        callbacks.ResumedEpoch(progress, length.steps_per_epoch, model),
        log,
        callbacks.BestModel(run.model_path, tokenizer, best["val_loss"] if best else None),
        curves,
        lines,
        callbacks.EarlyStopping(run, patience),
        checkpoints,
    ]
    with checkpoints, board, contextlib.closing(lines), told_when_stopped(curves, checkpoints):
        if progress.metrics_bytes == 0:
            checkpoints.set_model(model)
            checkpoints.save()  # so that there always is one to go back to
        if (run.path / "loss.png").exists():
            curves.draw()  # it may show what has just been cut from the events
        at_epoch_end = progress.step % length.steps_per_epoch == 0 or progress.step == length.num_train_steps
        if progress.step and at_epoch_end and (not epochs_done or epochs_done[-1]["step"] < progress.step):
            callbacks.finish_epoch(model, around, validation_dataset, epoch=len(epochs_done))
        if progress.step < length.num_train_steps and not callbacks.has_stopped_early(run.read_events(), patience):
            last_batch = progress.next_batch + length.num_train_steps - progress.step
            epochs_of_data = -(-last_batch // length.steps_per_epoch)
            model.fit_from(
                progress.step,
                length.steps_per_epoch,
                x=data.train_dataset(config, tokenizer, epochs_of_data, progress.next_batch),
                epochs=length.epochs,
                validation_data=validation_dataset,
                callbacks=around,
            )
    return checkpoints.progress()


@contextlib.contextmanager
def told_when_stopped(curves: callbacks.Curves, checkpoints: callbacks.Checkpoints) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        curves.draw()
        raise
    except NonFiniteLoss as error:
        curves.draw()
        error.progress = checkpoints.progress()
        raise


def roll_back(
    config: Config, run: RunDirectory, model: Any, tokenizer: Any, data: PreparedData, error: NonFiniteLoss
) -> Progress:
    """Put the newest checkpoint back, from which the run goes on with the data behind that of the bad steps.

    The checkpoint is written again with what was left out, so that an interrupted run repeats it.

    Raises:
        NonFiniteLoss: the run has gone back before.
    """
    stopped = error.progress
    sequences = [
        int(row)
        for batch in range(stopped.next_batch - error.num_steps, stopped.next_batch)
        for row in rows_of_batch(data.train_rows, config.training.batch_size, config.training.seed, batch)
    ]
    reason = f"{error}{describe_sequences(sequences, data, tokenizer)}"
    if stopped.rolled_back:
        run.append_event({"event": "non_finite", "step": stopped.step, "sequences": sequences})
        raise NonFiniteLoss(
            f"{reason}; the run had gone back before, from step {stopped.rolled_back[0]} to {stopped.rolled_back[1]}; "
            "lower optimizer.learning_rate, or set training.precision = 'float32', and start a new run"
        )
    checkpoint = load_checkpoint(run.checkpoints_path, stopped.fingerprint, before_bad_steps=True)
    if checkpoint is None:
        raise OSError(f"{run.checkpoints_path}: the checkpoints are gone")
    good, arrays = checkpoint
    restore_variables(model_variables(model), arrays)
    restore_best_model(run.checkpoints_path, good, run.model_path)  # it may be of an epoch that is cut
    run.cut_events(good.metrics_bytes)
    progress = replace(
        good,
        seconds=stopped.seconds,
        skipped_steps=stopped.skipped_steps,
        bad_steps=0,
        rolled_back=(stopped.step, good.step),
    )
    save_checkpoint(run.checkpoints_path, progress, model_variables(model), config.checkpoint.keep, run.model_path)
    print(f"back       to step {good.step:,}: {reason}; on with the batches behind, and no second time", flush=True)
    return progress


def describe_sequences(sequences: list[int], data: PreparedData, tokenizer: Any) -> str:
    """Which training sequences the last steps had, and how the first of them begins."""
    if not sequences:
        return ""
    shown = ", ".join(map(str, sequences[:_SEQUENCES_SHOWN]))
    more = f" and {len(sequences) - _SEQUENCES_SHOWN} more" if len(sequences) > _SEQUENCES_SHOWN else ""
    begin = tokenizer.decode(data.train.input_ids[sequences[0]][:12], skip_special_tokens=True)
    return f", on the training sequences {shown}{more} (the first begins {begin!r})"


def export(config: Config, run: RunDirectory, progress: Progress) -> None:
    """From the best model: SavedModel, fills, model card. The end event comes last, the checkpoints go after it."""
    model, tokenizer = load_trained(str(run.model_path))
    with as_os_error(tf.errors.OpError), atomic_directory(run.saved_model_path) as temporary:
        why_no_strings = export_saved_model(model, tokenizer, temporary)
    if why_no_strings:
        print(f"export     {why_no_strings}")
    events = run.read_events()
    best = best_epoch(events)
    if best is None:  # TensorFlow makes a folder that has vanished anew, and writes on
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run.metrics_path))
    last = [event for event in events if event["event"] == "epoch"][-1]
    end = {
        "event": "end",
        "epoch": last["epoch"],
        "step": last["step"],
        "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"],
        "seconds": round(progress.seconds, 3),
        "skipped_steps": progress.skipped_steps,
        **({"rolled_back": progress.rolled_back} if progress.rolled_back else {}),
        "fills": fill_examples(config, model, tokenizer),
    }
    write_atomically(
        run.path / "README.md",
        build_model_card(report(config, run, [*events, end], model.config.model_type, not why_no_strings)),
    )
    run.append_event(end)
    shutil.rmtree(run.checkpoints_path, ignore_errors=True)
    sentence = next(iter(config.training.example_sentences), "This is a great [MASK].")
    print(
        f"finished   {run.path}: best epoch {best['epoch']} of {last['epoch']}, val_loss "
        f"{best['val_loss']:.4f}, perplexity {perplexity(best['val_loss']):.2f}\n"
        f"           loss.png, README.md (model card), model/, saved_model/; curve in {run.choose_curve()}\n"
        f'try        python -m tf_mlm fill-mask {run.path} "{sentence}"'
    )


def export_for_hub(run: RunDirectory, folder: Path) -> None:
    """Write the model's files to `folder`, with the card and the curve that it shows.

    Raises:
        Refused: the run has not finished.
    """
    if not run.is_finished():
        raise Refused(f"{run.path}: this run has not finished; continue it with train.py --resume {run.path}")
    shutil.copytree(run.model_path, folder, dirs_exist_ok=True)
    shutil.copy(run.path / "loss.png", folder)
    model_type = json.loads((run.model_path / "config.json").read_text())["model_type"]
    told = report(load_config(run.config_path), run, run.read_events(), model_type, takes_strings=False)
    write_atomically(folder / "README.md", build_model_card(told, for_hub=True))


def report(
    config: Config, run: RunDirectory, events: list[dict[str, Any]], model_type: str, takes_strings: bool
) -> RunReport:
    environment = json.loads(run.environment_path.read_text())
    fills = zip(config.training.example_sentences, events[0]["fills"], events[-1]["fills"], strict=True)
    return RunReport(
        run_name=run.name,
        config=config,
        events=events,
        num_parameters=environment["num_parameters"],
        model_type=model_type,
        data=environment["data"],
        examples=[Example(*fill) for fill in fills],
        environment=environment,
        new_weights=environment["new_weights"],
        takes_strings=takes_strings,
    )


def plan(config: Config, run_path: Path) -> None:
    """Say what `train` would do, and by a few trial steps how fast; nothing is written but the cache."""
    model, tokenizer, data, length, environment = prepare(config)
    print(describe(config, data, model, length, environment, run_path), flush=True)
    print(describe_trial(config, length, run_trial(config, model, tokenizer, data)))
