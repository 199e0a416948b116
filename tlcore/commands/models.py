"""`tlcore export`, `import`, `evaluate`, `predict` and `families`: weights into a run and out of one, and what they are good for.

Owns these commands; parse, call, print. Called by `cli.py`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tlcore.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    AsMarkdown,
    Name,
    RecipeFile,
    RunStorage,
    Settings,
    Storage,
    overrides,
    print_json,
    stdout_console,
)
from tlcore.errors import RequestError

if TYPE_CHECKING:
    from tlcore.train.offline import TrainedModel

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A checkpoint's URL, <run>/trials/<trial>/step-<n>; or a run, or <run>/<trial>: its best checkpoint.",
    ),
]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


class Format(StrEnum):
    """What `export` writes."""

    model = "model"
    deepspeed = "deepspeed"


class Split(StrEnum):
    """What `evaluate` takes of the recipe's data."""

    train = "train"
    validation = "validation"
    test = "test"


class Dtype(StrEnum):
    """Number format of an exported model."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    source = "source"


def add_to(app: typer.Typer) -> None:
    """Put these commands among the others."""
    app.command()(export)
    app.command("import")(import_checkpoint)
    app.command()(evaluate)
    app.command()(predict)
    app.command()(families)


def _prepare(*urls: str) -> None:
    """Start the embedded store where a URL lives in it, and settle this process before torch is imported."""
    from tlcore.engine.process import prepare_process
    from tlcore.storage import ensure_embedded

    for url in urls:
        ensure_embedded(url)
    prepare_process()


def _find(word: str, storage: str) -> str:
    """The URL of the checkpoint that a word means; which one a run's name came to is said on stderr."""
    from tlcore.checkpoint import CheckpointRef
    from tlcore.report.checkpoints import choose_checkpoint
    from tlcore.report.runs import storage_of
    from tlcore.storage import ensure_embedded

    if CheckpointRef.is_one(word):
        return word
    ensure_embedded(storage_of(word, storage))
    store, manifest = choose_checkpoint(word, storage)
    found = str(CheckpointRef(store.url, manifest.trial, manifest.step))
    typer.echo(f"checkpoint: {found}", err=True)
    return found


def load_trained(checkpoint: str, storage: str, place: str | None = None, test: str | None = None) -> TrainedModel:
    """`place`: data that will be read; `test`: data that the test split is to be."""
    found = _find(checkpoint, storage)
    _prepare(found, *(each for each in (place, test) if each is not None))
    from tlcore.train.offline import TrainedModel

    return TrainedModel(found, test)


def export(
    checkpoint: Checkpoint,
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Directory to make, or an s3:// prefix.")],
    kind: Annotated[
        Format, typer.Option("--format", help="A model for from_pretrained, or a DeepSpeed universal checkpoint.")
    ] = Format.model,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="Of the weights; fp32 is what was trained, source what it started from.")
    ] = Dtype.fp32,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Largest file, and about the memory this takes.")
    ] = "2GB",
    adapter: Annotated[bool, typer.Option("--adapter", help="The LoRA updates alone, in peft's format.")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Write a checkpoint as a model that `from_pretrained` loads, shard by shard; LoRA updates are merged."""
    from pathlib import Path

    most = size_bytes(max_shard_size)
    if adapter and kind is Format.deepspeed:
        raise RequestError("--adapter and --format deepspeed exclude each other", hint="take one of them out")
    if kind is Format.deepspeed and "://" in destination and not destination.startswith("file://"):
        raise RequestError(
            f"DEST {destination!r}: DeepSpeed loads from a directory alone",
            hint="name a directory that all ranks can read",
        )
    checkpoint = _find(checkpoint, storage)
    _prepare(checkpoint, destination)
    from tlcore.train.adapter import export_adapter
    from tlcore.train.deepspeed_universal import export_universal
    from tlcore.train.export import export_checkpoint

    if kind is Format.deepspeed:
        typer.echo(str(export_universal(checkpoint, Path(destination.removeprefix("file://")))))
    elif adapter:
        typer.echo(export_adapter(checkpoint, destination))
    else:
        typer.echo(export_checkpoint(checkpoint, destination, dtype=dtype.value, max_shard_bytes=most))


def size_bytes(text: str) -> int:
    """`50MB`, `1.5 GB`, `512MiB` or a plain number, in bytes. Raises RequestError."""
    match = _SIZE.fullmatch(text.strip())
    power = "KMGT".find(match[2].upper()) + 1 if match and match[2] else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if size < 1:
        raise RequestError(f"--max-shard-size {text!r} is no size", hint="write 500MB, 2GB or a number of bytes")
    return size


def import_checkpoint(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="What DeepSpeed's save_checkpoint wrote, or a universal checkpoint.")
    ],
    recipe_file: RecipeFile,
    settings: Settings = None,
    name: Name = None,
    storage: RunStorage = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Which checkpoint in DIR; else the latest.")] = None,
) -> None:
    """Make a run that goes on from a DeepSpeed checkpoint of ZeRO stage 1, 2 or 3; learning rate and order of samples are the
    recipe's."""
    import shlex
    from pathlib import Path

    from tlcore.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides(settings, name=name, storage=storage))
    _prepare(recipe.storage)
    from tlcore.train.deepspeed_import import import_deepspeed

    done = import_deepspeed(Path(directory), recipe, tag)
    words = ["tlcore", "train", recipe_file, "--resume"]
    for option, given in (("--name", name), ("--storage", storage), *(("--set", word) for word in settings or ())):
        words += [option, given] if given else []
    typer.echo(str(done.ref))
    said = f"{done.source.kind} checkpoint of {done.source.world_size} ranks at step {done.source.global_steps}"
    typer.echo(f"imported a {said}; go on with: {shlex.join(words)}", err=True)


def evaluate(
    checkpoint: Checkpoint,
    split: Annotated[Split, typer.Option(help="Which part of its recipe's data.")] = Split.test,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PLACE", help="Other data in place of the test split, with the same columns."),
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """The metrics of a checkpoint on one part of its recipe's data, or on other data."""
    from tlcore.report.figures import metric

    if data is not None and split is not Split.test:
        raise RequestError(
            f"--data stands in place of the test split, and --split is {split.value}", hint="take --split out"
        )
    found = load_trained(checkpoint, storage, test=data).evaluate(split.value)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        typer.echo(f"{name} {metric(value)}")


def predict(
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[INPUT...]", help="What to predict for, one each.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="PLACE", help="Data to predict for, as data.train; - reads lines from stdin."),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Of --file: where the JSON lines go; else to stdout.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """What a checkpoint says about given inputs, or about every row of a file, one JSON line each."""
    from tlcore.report.tables import prediction_lines

    _check_asked(inputs, file, out)
    if file is not None:
        _predict_rows(load_trained(checkpoint, storage, None if file == "-" else file), file, out)
        return
    inputs = inputs or []
    answers = load_trained(checkpoint, storage).predict(inputs)
    found = [{"input": given, **answer} for given, answer in zip(inputs, answers, strict=True)]
    if as_json:
        print_json(found)
        return
    for line in prediction_lines(found):
        typer.echo(line)


def _check_asked(inputs: list[str] | None, file: str | None, out: str | None) -> None:
    """Raise RequestError for inputs that do not go together, before a model is read."""
    if bool(inputs) == (file is not None):
        said = "there is no INPUT" if file is None else f"--file {file} and INPUT exclude each other"
        raise RequestError(f"{said}, so nothing says what to predict for", hint="give inputs, or --file PLACE")
    if out is None:
        return
    if file is None:
        raise RequestError(f"--out {out} is for what --file gives", hint="give --file PLACE, or take --out out")
    check_new(out)


def check_new(out: str) -> None:
    """Raise RequestError where `--out` names no new file in a directory that is there."""
    from pathlib import Path

    if Path(out).exists() or not Path(out).absolute().parent.is_dir():
        fault = "exists" if Path(out).exists() else "lies in no directory"
        raise RequestError(f"--out {out} {fault}", hint="name a new file in a directory that is there")


def _predict_rows(trained: TrainedModel, file: str, out: str | None) -> None:
    """A JSON line for each row, written as its batch is through."""
    import contextlib
    import json
    import sys
    from pathlib import Path

    from tlcore.train.inputs import read_inputs, read_lines

    rows = read_lines(sys.stdin) if file == "-" else read_inputs(trained.recipe, file)
    with contextlib.nullcontext(sys.stdout) if out is None else Path(out).open("x", encoding="utf-8") as stream:
        for found in trained.predict_rows(rows, "standard input" if file == "-" else file):
            stream.write(json.dumps(found, ensure_ascii=False) + "\n")
            stream.flush()


def families(as_json: AsJson = False, markdown: AsMarkdown = False) -> None:
    """Model families: for which task, whose code, and whether it is proved to work."""
    from rich.table import Table

    from tlcore.tasks.families import FAMILIES, families_markdown

    if markdown:
        typer.echo(families_markdown())
        return
    rows = [family.to_dict() for family in FAMILIES]
    if as_json:
        print_json(rows)
        return
    table = Table(*rows[0], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row.values())
    stdout_console().print(table)
