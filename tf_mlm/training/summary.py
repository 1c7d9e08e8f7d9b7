"""Describes a training before it starts."""

from tf_mlm.data.prepared import describe_data
from tf_mlm.training.job import Job
from tf_mlm.training.plan import describe_plan


def describe(job: Job) -> str:
    """Data, model, plan and precision, as lines of text."""
    lines = [describe_data(job.data.facts)]
    if job.newly_initialized:
        count, names = len(job.newly_initialized), ", ".join(job.newly_initialized)
        lines.append(f"weights    {count:>10,} newly initialized (missing from {job.config.model.name}): {names}")
    job.model.summary(line_length=80, print_fn=lines.append)
    lines.append(describe_plan(job))
    precision = job.machine.precision
    lines.append(f"precision  {precision.name:>10} ({precision.reason}); XLA {job.machine.xla}")
    return "\n".join(lines)
