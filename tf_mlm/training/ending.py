"""The end of a run: exports the best model, writes the model card and records the end event."""

import errno
import os
import shutil

import tensorflow as tf

from tf_mlm.atomic_files import atomic_directory, write_atomically
from tf_mlm.errors import as_os_error
from tf_mlm.model.metrics import metrics_of
from tf_mlm.run.checkpoint import Progress
from tf_mlm.run.events import EndEvent, EpochEvent, Events, StartEvent
from tf_mlm.run.model_card import build_model_card, load_report
from tf_mlm.training.job import Job


def export(job: Job, progress: Progress) -> None:
    """Export the best model and write the model card and the end event. Then remove the checkpoints."""
    run = job.run
    model, tokenizer = job.objective.load_trained(run.model_path)
    with as_os_error(tf.errors.OpError), atomic_directory(run.saved_model_path) as temporary:
        why_no_strings = job.objective.export_saved_model(model, tokenizer, temporary)
    if why_no_strings:
        print(f"export     {why_no_strings}")
    events = run.read_events()
    best, last = events.best, events.epochs[-1] if events.epochs else None
    if best is None or last is None:  # the directory was deleted, and TensorFlow created it again
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run.metrics_path))
    end = EndEvent(
        epoch=last.epoch,
        step=last.step,
        best_epoch=best.epoch,
        best_val_loss=best.val_loss,
        seconds=round(progress.seconds, 3),
        skipped_steps=progress.skipped_steps,
        num_tokens=job.tokens_seen(progress),
        stopped_early=last.step < job.length.num_train_steps,
        rolled_back=progress.rolled_back,
        **job.objective.end_facts(job.config, model, tokenizer),
    )
    report = load_report(run, Events([*events, end]), takes_strings=not why_no_strings)
    write_atomically(run.path / "README.md", build_model_card(report))
    run.append_event(end)
    shutil.rmtree(run.checkpoints_path, ignore_errors=True)
    print(_describe_end(job, best, last, end))


def _describe_end(job: Job, best: StartEvent | EpochEvent, last: EpochEvent, end: EndEvent) -> str:
    config, path = job.config.training, job.run.path
    patience = config.early_stopping_patience
    lines = []
    if end.stopped_early:
        epochs = f"{patience} epoch{'s' * (patience > 1)}"
        reason = f"val_loss has not improved for {epochs} (training.early_stopping_patience)"
        reason = reason if patience else "a callback stopped it"
        lines.append(f"stopped    after epoch {last.epoch} of {job.length.epochs}: {reason}")
    values = best.validation or {}
    metrics = {metric.name: metric for metric in metrics_of(job.config.objective.name)}
    loss, headline = metrics["loss"], metrics[job.objective.headline]
    result = f"val_loss {loss.show(best.val_loss)}, {headline.name} {headline.show(values.get(headline.name))}"
    if best.epoch == 0:
        lines.append(
            f"warning    no epoch was better than the model before training ({result}; after the last epoch val_loss "
            f"{loss.show(last.val_loss)}): model/ and saved_model/ contain the starting model; lower "
            "optimizer.learning_rate, or train on more text"
        )
    lines += [
        f"finished   {path}: best epoch {best.epoch} of {last.epoch}, {result}",
        f"           loss.png, README.md (model card), model/, saved_model/; curve in {job.run.choose_curve()}",
        f"try        {job.objective.example_command(job.config, path)}",
    ]
    return "\n".join(lines)
