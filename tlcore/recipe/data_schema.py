"""What a recipe's `data` section holds, one docstring per setting, with its unit.

Owns names, types, ranges and defaults; which task takes which is in `task_table.py`, the rules between them in `checks.py`. Called
by `schema.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tlcore.recipe.section import AboveZero, Fraction, Positive, Section, Texts


class DataSection(Section):
    """Where the examples are and which columns mean what."""

    train: str = Field(examples=["s3://bucket/train.parquet"])
    """Training examples: parquet, csv, jsonl or a json array, at `s3://...` or a local path, a hub dataset's id, or, for images and
    sound, a directory with one folder per class; for object detection also a COCO json file."""
    validation: Fraction | str = 0.1
    """Examples that steer the search: a fraction of the training examples to hold out, or a place like `train`."""
    test: str | None = None
    """Examples for the final figures, touched once; null gives none."""
    text: str = "text"
    """Column with the input text; for speech recognition, with what is said."""
    text_pair: str | None = None
    """Column with the second text of a pair, such as a premise's hypothesis or a question's answer; null reads `text` alone."""
    label: str = "label"
    """Column with the class, as text or whole number; a list of them with multi_label; a number with regression; one per token
    for token classification."""
    tokens: str = "tokens"
    """Column with the list of words to label."""
    question: str = "question"
    """Column with the question."""
    context: str = "context"
    """Column with the text that holds the answer."""
    answers: str = "answers"
    """Column with the answers: `{text: [...], answer_start: [...]}`, positions in characters."""
    target: str | None = "target"
    """Column with the text to produce. For text generation null unless given: then `text` is the prompt and this alone is learned,
    rendered as a question and its answer by the chat template, or after a newline where there is none."""
    input: str | None = None
    """Column with what a prompt is about, put below it after a blank line; a cell may be empty."""
    messages: str | None = None
    """Column with a conversation, a list of `{role, content}` or `{from, value}`, of which the assistant's turns are learned, but
    for one that nobody asked for, at the very beginning; null learns `text`."""
    chat_template: str | None = None
    """How a conversation is written: chatml, or a file with a Jinja template, used and exported in place of the tokenizer's own."""
    image: str | None = None
    """Column with the picture: a path beside the file, a URL in the store, or the file's bytes; null is `image` where the task
    needs one."""
    objects: str = "objects"
    """Column with the boxes: `{bbox: [[x, y, width, height], ...], category: [...]}`, pixels."""
    mask: str = "mask"
    """Column with the picture of class numbers per pixel, 255 for none; given like `image`."""
    video: str = "video"
    """Column with the frames: a list of pictures, or the path of an array file (.npy) [frames, height, width, 3]."""
    audio: str = "audio"
    """Column with the sound: a path beside the file, a URL in the store, or the file's bytes (wav, flac, ogg, mp3)."""
    max_length: Positive = 128
    """Longest input, tokens; longer ones are cut, texts that are learned whole (language modelling) into several samples."""
    max_target_length: Positive = 128
    """Longest text to produce, tokens; longer ones are cut."""
    max_seconds: AboveZero = 30.0
    """Longest sound, seconds; longer ones are left out of training and of every metric, with a line that counts them, and predicted
    in chunks."""
    image_size: Literal["auto"] | Positive = "auto"
    """Height and width that pictures are brought to, pixels; auto is the pre-trained model's own."""
    frames: Literal["auto"] | Positive = "auto"
    """Frames taken of each video, evenly; auto is the pre-trained model's own."""
    augment: bool = False
    """Vary training pictures: random crop and mirror image."""
    labels: Texts | None = None
    """Class names in index order; null takes them from the training examples, sorted."""
    multi_label: bool = False
    """An example may have any number of classes; the label column holds a list, or texts with `|` between classes."""
    regression: bool = False
    """Tell a number in place of a class: the label column holds numbers, the loss is their mean squared error."""
    class_weights: Literal["balanced"] | None = None
    """balanced: in the training loss a rare class weighs as much as a frequent one, each sample by the inverse of its class's
    number of training examples; null: each sample weighs the same. Metrics count every sample once."""
    prefix: str = ""
    """Put before each input text, such as T5's `translate English to French: `."""
    packing: bool = False
    """Fill each sample of max_length tokens with several texts, none of which sees another."""
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the input that is hidden and to be told."""
    beams: Positive = 1
    """Beams of the search that produces text in evaluations and predictions."""
    language: str | None = None
    """Language spoken, for a model of several, such as `en` or `french`; null leaves it to the model."""
    source_language: str | None = None
    """Language of the texts, for a model that translates between many: the code that its tokenizer has for it, such as `eng_Latn`
    (NLLB), `en_XX` (mBART) or `en` (M2M100)."""
    target_language: str | None = None
    """Language that they are translated into, as `source_language` is given."""
    embedding_size: Positive = 128
    """Numbers in the embedding of a picture."""

    @property
    def target_column(self) -> str:
        """`target`, or its name where a task needs one."""
        return self.target or "target"

    @property
    def image_column(self) -> str:
        """`image`, or its name where a task needs one."""
        return self.image or "image"
