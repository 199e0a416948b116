"""The rules of this code base that no linter knows, each a function from one parsed file to the lines that break it.

Owns the rules and the table of rooms; `test_project_imports.py` applies them to every file and shows that each of them bites.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70

_BELOW_TRAIN = {"errors", "recipe", "storage", "checkpoint", "models", "data", "tasks", "transfer", "engine"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "recipe": {"errors"},
    "storage": {"errors"},
    "checkpoint": {"errors", "storage"},
    "models": {"errors", "recipe", "storage", "checkpoint"},
    "data": {"errors", "recipe", "storage", "models"},
    "tasks": {"errors", "recipe", "storage", "models", "data"},
    "transfer": {"errors", "recipe", "storage", "models", "tasks", "data"},
    "engine": {"errors", "recipe", "storage", "checkpoint", "models"},
    "train": _BELOW_TRAIN,
    "sweep": _BELOW_TRAIN | {"train"},
    "remote": {"errors", "recipe", "storage", "sweep"},
    "report": {"errors", "recipe", "storage", "checkpoint", "remote"},
    "commands": _BELOW_TRAIN | {"train", "sweep", "remote", "report"},
}
"""What each room may import of tlcore, besides itself. `cli` and `__main__` may import any."""

VENDORS: dict[str, set[str]] = {
    "ray": {"sweep", "remote"},
    "deepspeed": {"engine"},
    **{client: {"storage"} for client in ("obstore", "s3fs", "boto3", "botocore", "aiobotocore")},
}
"""Packages that only these rooms may import."""

HEAVY = {
    "torch",
    "torchvision",
    "ray",
    "deepspeed",
    "transformers",
    "datasets",
    "pyarrow",
    "pandas",
    "numpy",
    "torchmetrics",
}
"""What `tlcore validate` and `tlcore --help` must not load."""

_UNSAFE = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


@dataclass(frozen=True)
class Source:
    """One parsed file. `module` is its dotted name from the repository root."""

    module: str
    text: str
    tree: ast.Module

    @classmethod
    @cache
    def read(cls, path: Path) -> Source:
        parts = path.relative_to(ROOT).with_suffix("").parts
        return cls.parse(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text())

    @classmethod
    def parse(cls, module: str, text: str) -> Source:
        return cls(module, text, ast.parse(text))

    @property
    def room(self) -> str | None:
        """The room of `tlcore` it stands in; None outside, and in the package's own `__init__`."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "tlcore" and len(parts) > 1 else None


def product_files() -> list[Path]:
    return sorted(path for folder in ("tlcore", "jobs", "cluster") for path in (ROOT / folder).rglob("*.py"))


def imports(source: Source, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; `from a import b` gives `a.b`, which may name a module or a thing in it."""
    for node in _running_on_import(source.tree) if top_level_only else ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*source.module.split(".")[: -node.level], base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _running_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: function bodies and `if TYPE_CHECKING` do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _running_on_import(node)


def import_direction(source: Source) -> Iterator[str]:
    """Rooms import only what stands above them; nothing in tlcore imports jobs, cluster or tests."""
    if not source.module.startswith("tlcore"):
        return
    for line, name in imports(source):
        parts = name.split(".")
        if parts[0] in ("jobs", "cluster", "tests"):
            yield f"{line}: tlcore imports {name}"
        if source.room not in ROOMS or parts[0] != "tlcore" or len(parts) < 2:
            continue
        if parts[1] == "cli" or (parts[1] in ROOMS and parts[1] not in ROOMS[source.room] | {source.room}):
            yield f"{line}: {source.room} imports {name}"


def vendors(source: Source) -> Iterator[str]:
    """Ray, DeepSpeed and S3 clients each stay in their rooms. `jobs/bench` may import what it compares."""
    if source.module.startswith("jobs.bench"):
        return
    for line, name in imports(source):
        package = name.split(".")[0]
        if package in VENDORS and source.room not in VENDORS[package]:
            yield f"{line}: {package} outside {', '.join(sorted(VENDORS[package]))}"


def unsafe_calls(source: Source) -> Iterator[str]:
    """Nothing that runs what it reads: pickle and its kin, torch.load without weights_only, a shell."""
    for line, name in imports(source):
        if name.split(".")[0] in _UNSAFE:
            yield f"{line}: imports {name}"
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            yield f"{node.lineno}: torch.load without weights_only=True"
        if given.get("allow_pickle") == "True":
            yield f"{node.lineno}: allow_pickle=True"
        if given.get("shell") == "True" or called in ("os.system", "os.popen"):
            yield f"{node.lineno}: a shell runs {called}"


def broad_excepts(source: Source) -> Iterator[str]:
    """No `except Exception`, unless it raises again or says why on its line, as `# noqa: BLE001 (why)`."""
    lines = source.text.splitlines()
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = ast.unparse(node.type) if node.type else "everything"
        if not {"everything", "Exception", "BaseException"} & set(caught.strip("()").split(", ")):
            continue
        raises_again = any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement))
        if not raises_again and "noqa: BLE001 (" not in lines[node.lineno - 1]:
            yield f"{node.lineno}: catches {caught}"


def docstring(source: Source) -> Iterator[str]:
    """Every module says what it owns."""
    if not ast.get_docstring(source.tree):
        yield "1: no module docstring"


def sizes(source: Source) -> Iterator[str]:
    """Files and functions stay short enough to be read whole."""
    length = len(source.text.splitlines())
    if length > MAX_FILE_LINES:
        yield f"{length}: more than {MAX_FILE_LINES} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"


RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    import_direction,
    vendors,
    unsafe_calls,
    broad_excepts,
    docstring,
    sizes,
)


def loaded_by(module: str, sources: dict[str, Source]) -> dict[str, str]:
    """Every package outside tlcore that importing `module` loads, with the tlcore module that asks for it."""
    found: dict[str, str] = {}
    waiting, seen = [module], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current not in sources:
            continue
        seen.add(current)
        waiting.append(current.rpartition(".")[0])
        for _, name in imports(sources[current], top_level_only=True):
            if name.split(".")[0] == "tlcore":
                waiting += [name, name.rpartition(".")[0]]
            else:
                found.setdefault(name.split(".")[0], current)
    return found
