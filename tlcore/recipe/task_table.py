"""What each task reads, and what it reports: one row per task.

Owns the table. A setting of `data` that a task's row does not name is refused with that task, so that nothing asked for is ever
ignored; the row's first metric is what a search compares where the recipe names none. Called by `checks.py`, `plan.py`, `build.py`.
The code of a task is in the room `tasks/`; a test holds each one's metrics against its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Better = Literal["max", "min"]
COMMON: Final = ("train", "validation", "test")
"""Settings of `data` that every task takes."""


@dataclass(frozen=True)
class TaskRow:
    """`metrics`: what a trial reports, and which way is better; the main one first. `columns`: settings of `data` that name a
    column to read. `settings`: its other ones."""

    metrics: Mapping[str, Better]
    columns: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def takes(self, key: str) -> bool:
        """Whether `data.<key>` means anything for this task."""
        return key in (*COMMON, *self.columns, *self.settings)


def _metrics(main: str, *others: str, **better: Better) -> dict[str, Better]:
    return {
        f"eval_{name}": better.get(name, "min" if name in _LESS_IS_BETTER else "max")
        for name in (main, *others, "loss")
    }


_LESS_IS_BETTER: Final = ("loss", "perplexity", "wer", "cer", "mse", "mae")

TASK_TABLE: Final[dict[str, TaskRow]] = {
    "text-classification": TaskRow(
        _metrics("accuracy", "f1"),
        ("text", "text_pair", "label"),
        ("labels", "multi_label", "regression", "class_weights", "max_length"),
    ),
    "token-classification": TaskRow(
        _metrics("f1", "precision", "recall", "accuracy"), ("tokens", "label"), ("labels", "max_length")
    ),
    "question-answering": TaskRow(_metrics("f1", "exact"), ("question", "context", "answers"), ("max_length",)),
    "summarization": TaskRow(
        _metrics("rougeL", "rouge1", "rouge2"),
        ("text", "target"),
        ("prefix", "max_length", "max_target_length", "beams"),
    ),
    "translation": TaskRow(
        _metrics("bleu", "chrf"),
        ("text", "target"),
        ("prefix", "max_length", "max_target_length", "beams", "source_language", "target_language"),
    ),
    "text-generation": TaskRow(
        {"eval_loss": "min", "eval_perplexity": "min", "eval_accuracy": "max"},
        ("text", "target", "input", "messages"),
        ("packing", "max_length", "chat_template"),
    ),
    "masked-language-modeling": TaskRow(
        {"eval_loss": "min", "eval_perplexity": "min", "eval_accuracy": "max"},
        ("text",),
        ("max_length", "mask_probability"),
    ),
    "image-classification": TaskRow(
        _metrics("accuracy", "f1"),
        ("image", "label"),
        ("labels", "multi_label", "regression", "class_weights", "image_size", "augment"),
    ),
    "video-classification": TaskRow(
        _metrics("accuracy", "f1"),
        ("video", "label"),
        ("labels", "multi_label", "regression", "class_weights", "image_size", "frames"),
    ),
    "object-detection": TaskRow(_metrics("map", "map_50"), ("image", "objects"), ("labels", "image_size", "augment")),
    "image-segmentation": TaskRow(_metrics("miou", "accuracy"), ("image", "mask"), ("labels", "image_size", "augment")),
    "image-embedding": TaskRow(
        _metrics("recall_at_1", "map_at_r"), ("image", "label"), ("labels", "image_size", "augment", "embedding_size")
    ),
    "image-text-to-text": TaskRow(
        {"eval_loss": "min", "eval_perplexity": "min", "eval_accuracy": "max"},
        ("image", "text", "target"),
        ("max_length",),
    ),
    "anomaly-detection": TaskRow(_metrics("auroc", "average_precision"), ("image", "label"), ("image_size", "augment")),
    "speech-recognition": TaskRow(
        _metrics("wer", "cer"), ("audio", "text"), ("max_seconds", "max_target_length", "language", "beams")
    ),
    "audio-classification": TaskRow(
        _metrics("accuracy", "f1"),
        ("audio", "label"),
        ("labels", "multi_label", "regression", "class_weights", "max_seconds"),
    ),
    "audio-pretraining": TaskRow(
        {"eval_loss": "min", "eval_accuracy": "max"}, ("audio",), ("max_seconds", "mask_probability")
    ),
    "speech-translation": TaskRow(
        _metrics("bleu", "chrf"), ("audio", "target"), ("max_seconds", "max_target_length", "language", "beams")
    ),
}

NUMBER_METRICS: Final = _metrics("mse", "mae", "pearson", "spearman")
"""What a task that classifies reports where `data.regression` asks for numbers. Errors before correlations: a correlation of few
samples, or of a model that tells one number throughout, says nothing."""


def metrics_of(task: str, regression: bool) -> Mapping[str, Better]:
    """What a recipe's trials report, the main one first."""
    row = TASK_TABLE[task]
    return NUMBER_METRICS if regression and row.takes("regression") else row.metrics


def takers(key: str) -> tuple[str, ...]:
    """The tasks that take `data.<key>`."""
    return tuple(task for task, row in TASK_TABLE.items() if row.takes(key))


def with_target(data: dict[str, Any]) -> dict[str, Any]:
    """A raw recipe, with no `data.target` where text generation names none: its `text` is then learned whole.

    What an earlier version stored has every setting of its own, so a `target` that it did not read, and no `input`.
    """
    section = data.get("data")
    if data.get("task") != "text-generation" or not isinstance(section, dict):
        return data
    stored = "input" not in section and {"tokens", "objects", "mask"} <= section.keys()
    if "target" in section and not (stored and section["target"] == "target"):
        return data
    return {**data, "data": {**section, "target": None}}


def with_main_metric(data: dict[str, Any]) -> dict[str, Any]:
    """A raw recipe with its task's main metric, and each metric's own mode, where its `search` does not say."""
    task, search, section = data.get("task"), data.get("search") or {}, data.get("data")
    if not isinstance(task, str) or task not in TASK_TABLE:
        return data
    if not isinstance(search, dict) or search.get("mode") is not None:
        return data
    metrics = metrics_of(task, isinstance(section, dict) and section.get("regression") is True)
    metric = search.get("metric", next(iter(metrics)))
    modes = [metrics.get(name) for name in ([metric] if isinstance(metric, str) else metric or ["-"])]
    if None in modes:
        return data
    return {**data, "search": {**search, "metric": metric, "mode": modes[0] if isinstance(metric, str) else modes}}
