"""What is trained for: one file per task, behind one protocol.

`base.py` is the protocol, `model_task.py` what most tasks share, `text_classification.py` the first task. Called by `train/`,
`transfer/`, and by the command's export, evaluate and predict. Tasks are imported when asked for, since each brings its family's
libraries.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from tlcore.tasks.base import Batch, MetricAccumulator, Task

if TYPE_CHECKING:
    from tlcore.recipe import Recipe

TASKS = {
    "text-classification": "tlcore.tasks.text_classification:TextClassification",
    "token-classification": "tlcore.tasks.token_classification:TokenClassification",
    "question-answering": "tlcore.tasks.question_answering:QuestionAnswering",
    "summarization": "tlcore.tasks.text_to_text:TextToText",
    "translation": "tlcore.tasks.text_to_text:TextToText",
    "text-generation": "tlcore.tasks.text_generation:TextGeneration",
    "masked-language-modeling": "tlcore.tasks.masked_language_modeling:MaskedLanguageModeling",
    "image-classification": "tlcore.tasks.image_classification:ImageClassification",
    "video-classification": "tlcore.tasks.video_classification:VideoClassification",
    "object-detection": "tlcore.tasks.object_detection:ObjectDetection",
    "image-segmentation": "tlcore.tasks.image_segmentation:ImageSegmentation",
    "image-embedding": "tlcore.tasks.image_embedding:ImageEmbedding",
    "image-text-to-text": "tlcore.tasks.image_text_to_text:ImageTextToText",
    "anomaly-detection": "tlcore.tasks.anomaly_detection:AnomalyDetection",
    "speech-recognition": "tlcore.tasks.speech_recognition:SpeechRecognition",
    "audio-pretraining": "tlcore.tasks.audio_pretraining:AudioPretraining",
    "audio-classification": "tlcore.tasks.audio_classification:AudioClassification",
    "speech-translation": "tlcore.tasks.speech_recognition:SpeechRecognition",
}
"""Task id -> where its class is."""


def build_task(recipe: Recipe, facts: Mapping[str, Any] | None = None) -> Task:
    """The recipe's task. Reads neither data nor weights yet, but brings the model source onto this machine.

    Args:
        facts: what an earlier `Task.facts()` gave, as a checkpoint keeps it: then no training data is needed to know the classes.

    Raises:
        ModelError: the model source cannot be had.
    """
    return cast(Task, _task_class(recipe.task)(recipe, facts))


def build_without_data(recipe: Recipe) -> Task:
    """The recipe's task with what its training data would settle assumed: for estimates. Raises as `build_task`."""
    task_class = _task_class(recipe.task)
    return cast(Task, task_class(recipe, task_class.assumed_facts(recipe)))


def _task_class(task: str) -> Any:
    module, _, name = TASKS[task].partition(":")
    return getattr(importlib.import_module(module), name)


__all__ = ["TASKS", "Batch", "MetricAccumulator", "Task", "build_task", "build_without_data"]
