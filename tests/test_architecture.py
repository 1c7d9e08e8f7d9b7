"""Imports go one way: each module imports only from modules above it in this list."""

import ast

from tests.conftest import ROOT

ORDER = [
    "tf_mlm",
    "tf_mlm.errors",
    "tf_mlm.json_text",
    "tf_mlm.atomic_files",
    "tf_mlm.hub",
    "tf_mlm.config",
    "tf_mlm.runtime",
    "tf_mlm.cluster",
    "tf_mlm.worker_processes",
    "tf_mlm.dask_cluster",
    "tf_mlm.data",
    "tf_mlm.data.local_files",
    "tf_mlm.data.readers",
    "tf_mlm.data.sample_corpus",
    "tf_mlm.data.corpus",
    "tf_mlm.data.sequences",
    "tf_mlm.data.joined_rows",
    "tf_mlm.data.duplicates",
    "tf_mlm.data.shards",
    "tf_mlm.data.masking",
    "tf_mlm.data.mixture",
    "tf_mlm.data.streams",
    "tf_mlm.data.streamed_sequences",
    "tf_mlm.data.pipeline",
    "tf_mlm.data.prepared",
    "tf_mlm.data.tables",
    "tf_mlm.data.labeled",
    "tf_mlm.data.labels",
    "tf_mlm.model",
    "tf_mlm.model.architectures",
    "tf_mlm.model.protocol",
    "tf_mlm.model.metrics",
    "tf_mlm.model.matmul_peak",
    "tf_mlm.model.dropout",
    "tf_mlm.model.stop_request",
    "tf_mlm.model.training_step",
    "tf_mlm.model.masked_lm",
    "tf_mlm.model.label_metrics",
    "tf_mlm.model.label_model",
    "tf_mlm.model.pretrained_files",
    "tf_mlm.model.tokenizer",
    "tf_mlm.model.loading",
    "tf_mlm.model.saving",
    "tf_mlm.model.freezing",
    "tf_mlm.model.optimizer",
    "tf_mlm.run",
    "tf_mlm.run.events",
    "tf_mlm.run.directory",
    "tf_mlm.run.plotting",
    "tf_mlm.run.probe_results",
    "tf_mlm.run.range_test_results",
    "tf_mlm.run.card_parts",
    "tf_mlm.run.label_card",
    "tf_mlm.run.model_card",
    "tf_mlm.run.comparison",
    "tf_mlm.run.repeats",
    "tf_mlm.run.checkpoint",
    "tf_mlm.run.tensorboard",
    "tf_mlm.inference",
    "tf_mlm.export",
    "tf_mlm.export.graph_tokenizer",
    "tf_mlm.export.saved_model",
    "tf_mlm.export.label_saved_model",
    "tf_mlm.inference.fill_mask",
    "tf_mlm.export.huggingface",
    "tf_mlm.export.conversion",
    "tf_mlm.inference.locate",
    "tf_mlm.inference.explain",
    "tf_mlm.inference.words",
    "tf_mlm.inference.masked_tokens",
    "tf_mlm.inference.breakdown",
    "tf_mlm.inference.breakdown_plot",
    "tf_mlm.inference.token_groups",
    "tf_mlm.inference.evaluate",
    "tf_mlm.inference.evaluate_labels",
    "tf_mlm.inference.features",
    "tf_mlm.inference.masked_copies",
    "tf_mlm.inference.score",
    "tf_mlm.inference.targets",
    "tf_mlm.inference.probe",
    "tf_mlm.inference.predict",
    "tf_mlm.inference.loaded",
    "tf_mlm.training",
    "tf_mlm.training.length",
    "tf_mlm.training.objectives",
    "tf_mlm.training.objectives.base",
    "tf_mlm.training.objectives.labels",
    "tf_mlm.training.objectives.masked",
    "tf_mlm.training.objectives.table",
    "tf_mlm.training.job",
    "tf_mlm.training.fingerprint",
    "tf_mlm.training.workers",
    "tf_mlm.training.plan",
    "tf_mlm.training.summary",
    "tf_mlm.training.recovery",
    "tf_mlm.training.callbacks",
    "tf_mlm.training.callbacks.stop_signals",
    "tf_mlm.training.preparation",
    "tf_mlm.training.callbacks.metrics_log",
    "tf_mlm.training.callbacks.checkpoints",
    "tf_mlm.training.callbacks.best_model",
    "tf_mlm.training.callbacks.curves",
    "tf_mlm.training.callbacks.early_stopping",
    "tf_mlm.training.callbacks.progress_lines",
    "tf_mlm.training.callbacks.resumed_epoch",
    "tf_mlm.training.beginning",
    "tf_mlm.training.fit_context",
    "tf_mlm.training.ending",
    "tf_mlm.training.train",
    "tf_mlm.training.range_test",
    "tf_mlm.serving",
    "tf_mlm.serving.requests",
    "tf_mlm.serving.served_model",
    "tf_mlm.serving.batching",
    "tf_mlm.serving.metrics",
    "tf_mlm.serving.service",
    "tf_mlm.serving.tf_serving",
    "tf_mlm.serving.fill_mask_api",
    "tf_mlm.serving.page",
    "tf_mlm.serving.openapi",
    "tf_mlm.serving.app",
    "tf_mlm.serving.server",
    "tf_mlm.commands",
    "tf_mlm.commands.libraries",
    "tf_mlm.commands.multi_worker",
    "tf_mlm.commands.lines",
    "tf_mlm.api",
    "tf_mlm.commands.train",
    "tf_mlm.commands.prepare",
    "tf_mlm.commands.find_lr",
    "tf_mlm.commands.fill_mask",
    "tf_mlm.commands.score",
    "tf_mlm.commands.evaluate",
    "tf_mlm.commands.finetune",
    "tf_mlm.commands.predict",
    "tf_mlm.commands.probe",
    "tf_mlm.commands.explain",
    "tf_mlm.commands.compare",
    "tf_mlm.commands.export",
    "tf_mlm.commands.serve",
    "tf_mlm.commands.main",
    "tf_mlm.__main__",
]


def modules() -> dict[str, ast.Module]:
    files = {path.relative_to(ROOT): path for path in (ROOT / "tf_mlm").rglob("*.py")}
    names = {
        ".".join(relative.with_suffix("").parts).removesuffix(".__init__"): path for relative, path in files.items()
    }
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in names.items()}


def imported(tree: ast.Module) -> set[str]:
    """Modules of the package that `tree` imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in ORDER else node.module for name in inside}
    return {name for name in found if name.partition(".")[0] == "tf_mlm"}


def test_the_list_contains_every_module() -> None:
    assert sorted(modules()) == sorted(ORDER)


def test_each_module_imports_only_from_modules_above_it() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, tree in modules().items()
        for other in imported(tree)
        if ORDER.index(other) >= ORDER.index(name)
    ]
    assert wrong == []


def test_the_walk_sees_imports() -> None:
    """A walk that found nothing would pass the test above."""
    assert imported(ast.parse("from tf_mlm import hub\nimport tf_mlm.config\nfrom tf_mlm.data.readers import x")) == {
        "tf_mlm.hub", "tf_mlm.config", "tf_mlm.data.readers",
    }  # fmt: skip


def test_the_entry_is_under_30_lines() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) < 30
