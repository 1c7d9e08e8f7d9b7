"""Restores the state at which `fit` begins: the newest checkpoint, or the checkpoint to which a run rolls back."""

from dataclasses import replace
from typing import Any

from tf_mlm.data.pipeline import rows_of_batch
from tf_mlm.errors import NonFiniteLoss
from tf_mlm.run.checkpoint import (
    Progress,
    load_checkpoint,
    model_variables,
    restore_best_model,
    restore_variables,
    save_checkpoint,
)
from tf_mlm.run.events import NonFiniteEvent
from tf_mlm.training.fingerprint import fingerprint
from tf_mlm.training.job import Job
from tf_mlm.training.workers import share_events, share_progress, share_variables

_SEQUENCES_SHOWN = 100  # in an error message; metrics.jsonl lists all


def restore(job: Job) -> Progress:
    """Assign the newest checkpoint, if there is one, to the variables of the model and the optimizer.

    Events after the checkpoint are removed; the run writes them again.

    Returns:
        The progress of the run.
    """
    run_fingerprint = fingerprint(job)
    variables = model_variables(job.model)  # creates those of the optimizer, on all workers at the same time
    # The other workers have no checkpoints: they receive the state of the chief.
    checkpoint = load_checkpoint(job.run.checkpoints_path, run_fingerprint)
    progress = Progress(0, (0.0, 0.0), metrics_bytes=0, seconds=0.0, fingerprint=run_fingerprint)
    if checkpoint:
        progress, arrays = checkpoint
        restore_variables(variables, arrays)
    progress = share_progress(job.machine, progress)
    job.run.cut_events(progress.metrics_bytes)
    if progress.metrics_bytes:
        share_variables(job.machine, variables)
        print(f"resumed    at step {progress.step:,}", flush=True)
    return progress


def roll_back(job: Job, error: NonFiniteLoss) -> Progress:
    """Restore the newest checkpoint before the bad steps, and skip the data of the bad steps.

    The checkpoint is saved again with this change, so that a resumed run repeats it exactly.

    Raises:
        NonFiniteLoss: the run has rolled back before, or not all workers raised the error.
    """
    if job.machine.num_workers > 1 and not error.on_all_workers:
        raise error
    config, run, data = job.config, job.run, job.data
    failed: Progress = error.progress
    sequences = [
        int(row)
        for batch in range(failed.next_batch - error.num_steps, failed.next_batch)
        for row in rows_of_batch(data.train_rows, config.training.batch_size, config.training.seed, batch)
    ]
    reason = f"{error}{_describe_sequences(sequences, job)}"
    if failed.rolled_back:
        run.append_event(NonFiniteEvent(step=failed.step, sequences=sequences))
        raise NonFiniteLoss(
            f"{reason}; the run had already rolled back from step {failed.rolled_back[0]} to {failed.rolled_back[1]}; "
            "lower optimizer.learning_rate or set training.precision = 'float32', and start a new run"
        )
    good = failed
    if job.machine.is_chief:
        checkpoint = load_checkpoint(run.checkpoints_path, failed.fingerprint, before_bad_steps=True)
        if checkpoint is None:
            raise OSError(f"{run.checkpoints_path}: the checkpoints no longer exist")
        good, arrays = checkpoint
        restore_variables(model_variables(job.model), arrays)
        restore_best_model(run.checkpoints_path, good, run.model_path)  # the current one may be of a later epoch
    good = share_progress(job.machine, good)
    share_variables(job.machine, model_variables(job.model))
    run.cut_events(good.metrics_bytes)
    share_events(job.machine, run)
    progress = replace(
        good,
        seconds=failed.seconds,
        skipped_steps=failed.skipped_steps,
        bad_steps=0,
        rolled_back=(failed.step, good.step),
    )
    if job.machine.is_chief:
        variables = model_variables(job.model)
        save_checkpoint(run.checkpoints_path, progress, variables, config.checkpoint.keep, run.model_path)
    print(
        f"rolled back to step {good.step:,}: {reason}; skipping the bad batches; another failure ends the run",
        flush=True,
    )
    return progress


def _describe_sequences(sequences: list[int], job: Job) -> str:
    """Describe the training sequences of the failing steps, with the beginning of the first one."""
    if not sequences:
        return ""
    shown = ", ".join(map(str, sequences[:_SEQUENCES_SHOWN]))
    more = f" and {len(sequences) - _SEQUENCES_SHOWN} more" if len(sequences) > _SEQUENCES_SHOWN else ""
    beginning: Any = job.tokenizer.decode(job.data.train.input_ids[sequences[0]][:12], skip_special_tokens=True)
    return f", on the training sequences {shown}{more} (the first begins with {beginning!r})"
