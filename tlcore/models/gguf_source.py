"""Makes a model directory of a causal language model that lies somewhere as one .gguf file (llama.cpp's format), once per node.

Owns finding that file in a source without config.json, and its conversion to fp32 safetensors, configuration and tokenizer by
transformers' own reader, which needs the package gguf. Called by `source.py`. Quantised weights become the numbers that they stand
for, so fine-tuning starts from the quantised model, not from the one that it was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

from tlcore.errors import ModelError
from tlcore.storage.shelf import node_shelf, shelved


def gguf_file(source: str, directory: Path) -> Path | None:
    """The .gguf file that is the model of a directory; None where config.json says that it is an ordinary one, or there is none.

    Raises ModelError: several of them.
    """
    found = [] if (directory / "config.json").is_file() else sorted(directory.glob("*.gguf"))
    if len(found) > 1:
        raise ModelError(
            f"model source {source!r}: {directory} has {len(found)} .gguf files: {', '.join(path.name for path in found)}",
            hint="put the one that is meant into a folder of its own",
        )
    return found[0] if found else None


def gguf_directory(source: str, file: Path, shelf: Path | None = None) -> Path:
    """The directory of a source whose model is this file.

    Raises:
        ModelError: the package gguf is missing, transformers cannot read the file, or the shelf cannot be written.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"model source {source!r} is {file.name}, and the package that reads .gguf files is not installed here",
            hint="pip install 'tlcore[gguf]', on every node that trains",
        )
    stat = file.stat()
    content = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:24]
    place = shelf or node_shelf("models")
    try:
        return shelved(place, f"gguf-{file.stem}-{content}", lambda folder: _convert(source, file, folder))
    except OSError as error:
        raise ModelError(
            f"model source {source!r}: cannot keep it in {place}: {error}", hint="free space there, or make it writable"
        ) from error


def _convert(source: str, file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    from tlcore.models.build import quiet

    try:
        # its bar of tensors does not ask whether bars are wanted
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            model = _read(source, file)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError, ImportError, struct.error) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"model source {source!r}: transformers cannot read {file}: {reason[:300]}",
            hint="it reads causal language models of the architectures in its documentation on GGUF",
        ) from error
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(source: str, file: Path) -> Any:
    """The model in fp32 as an ordinary one: what transformers reads counts as quantised, and would not be saved."""
    import torch
    from transformers import AutoModelForCausalLM

    read, info = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"model source {source!r}: {file} has no {missing[0]}", hint="the file is not whole")
    config = deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    return model
