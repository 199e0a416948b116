"""Which model families are trained for what, and which of that is proved.

Owns the table behind `tlcore families`. A row without a reason says `works`, and `tests/integration/test_families.py` takes its
cases from these rows: what says so is trained there on ranks at ZeRO stages 1, 2 and 3 against plain torch, restored to the last
bit, exported and loaded again, or that test fails. Rows with a reason are families that people look for and that nobody can train
here. Called by the command. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

WORKS: Final = "works"
_CLOSED: Final = "its weights are not public; open ones of its kind: gpt-oss for text, llava and idefics3 with pictures"
_COPYLEFT: Final = "its code is under the AGPL; yolox, yolos and detr are free"


_BACKBONES: Final = ("torchvision-mobilenet_v2", "torchvision-resnet", "torchvision-efficientnet", "torchvision-vgg")


@dataclass(frozen=True)
class Family:
    """`id` is the family's name and `task` the recipe's; `source`: whose code the model is; `lacks`: why it does not work, empty
    where it does."""

    id: str
    task: str
    source: str = "transformers"
    lacks: str = ""

    @property
    def name(self) -> str:
        """Family and task in one word."""
        return f"{self.id}/{self.task}"

    def to_dict(self) -> dict[str, Any]:
        """As `tlcore families --json` gives it."""
        return {"id": self.id, "task": self.task, "source": self.source, "state": self.lacks or WORKS}


FAMILIES: Final[tuple[Family, ...]] = (
    Family("bert", "text-classification"),
    Family("bert", "token-classification"),
    Family("bert", "question-answering"),
    Family("bert", "masked-language-modeling"),
    Family("roberta", "text-classification"),
    Family("distilbert", "text-classification"),
    Family("t5", "summarization"),
    Family("bart", "summarization"),
    Family("marian", "translation"),
    Family("gpt2", "text-generation"),
    Family("llama", "text-generation"),
    Family("qwen3", "text-generation"),
    Family("gpt-oss", "text-generation"),
    Family("gpt-4", "text-generation", "OpenAI", _CLOSED),
    Family("vit", "image-classification"),
    Family("resnet", "image-classification"),
    Family("mobilenet_v2", "image-classification"),
    Family("convnext", "image-classification"),
    Family("swin", "image-classification"),
    Family("efficientnet", "image-classification"),
    *(Family(name, "image-classification", "torchvision") for name in _BACKBONES),
    Family("resnet", "image-embedding"),
    Family("resnet", "anomaly-detection"),
    Family("videomae", "video-classification"),
    Family("llava", "image-text-to-text"),
    Family("idefics3", "image-text-to-text"),
    Family("segformer", "image-segmentation"),
    Family("mobilenet_v2", "image-segmentation"),
    Family("upernet", "image-segmentation"),
    *(Family(name, "image-segmentation", "torchvision") for name in _BACKBONES),
    Family("efficientnet-lite", "image-segmentation", "tlcore"),
    Family("yolos", "object-detection"),
    Family("detr", "object-detection"),
    *(Family(name, "object-detection", "torchvision") for name in _BACKBONES),
    Family("efficientnet-lite", "object-detection", "tlcore"),
    Family("yolov8", "object-detection", "Ultralytics", _COPYLEFT),
    Family("elmo", "text-classification", "tlcore"),
    Family("transfo-xl", "text-generation", "tlcore"),
    Family("efficientnet-lite", "image-classification", "tlcore"),
    Family("yolox", "object-detection", "tlcore"),
    Family("wav2vec2", "audio-classification"),
    Family("hubert", "audio-classification"),
    Family("wav2vec2", "speech-recognition"),
    Family("hubert", "speech-recognition"),
    Family("deepspeech", "speech-recognition", "tlcore"),
    Family("deepspeech2", "speech-recognition", "tlcore"),
    Family("wav2vec2", "audio-pretraining"),
    Family("whisper", "speech-recognition"),
    Family("whisper", "speech-translation"),
)


def families_markdown() -> str:
    """The table as README has it: a row per task, in the order of tasks."""
    lines = ["| task | works | does not |", "|---|---|---|"]
    for task in dict.fromkeys(family.task for family in FAMILIES):
        of_task = [family for family in FAMILIES if family.task == task]
        proved, others = (
            ", ".join(_with_owner(family) for family in of_task if bool(family.lacks) == lacks)
            for lacks in (False, True)
        )
        lines.append(f"| `{task}` | {proved} | {others} |")
    return "\n".join(lines)


def _with_owner(family: Family) -> str:
    return f"{family.id} (own)" if family.source == "tlcore" else family.id
