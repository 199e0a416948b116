"""Finds secrets that stand in a recipe, and keeps them out of every message.

Owns the patterns. A recipe is copied into the store with each run and printed in plans and differences, so a secret
in it is a leaked secret. Called by `build.py` (refuses) and by whatever puts a value into a message (`shown`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from tlcore.errors import Fault

LONGEST_SHOWN: Final = 60
_SECRETS: Final = (
    (re.compile(r"://[^/@\s:]*:[^/@\s]+@"), "a user name and password in a URL"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"[?&](?:X-Amz-Signature|X-Amz-Credential|Signature|sig|token)=", re.IGNORECASE), "a signed URL"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "a Hugging Face token"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
)
_TELLING_KEY: Final = re.compile(
    r"(?:password|passwd|secret|api_?key|access_?key|credential|(?:^|_)token$)", re.IGNORECASE
)


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML would have it, cut at 60 characters, `<hidden>` when it holds a secret."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    if _secret_in(text):
        return "<hidden>"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _secret_in(text: str) -> str | None:
    return next((what for pattern, what in _SECRETS if pattern.search(text)), None)


def credential_faults(data: Any, path: str = "") -> Iterator[Fault]:
    """One fault per value that looks like a secret, without the value."""
    if isinstance(data, dict):
        for key, value in data.items():
            below = f"{path}.{key}" if path else str(key)
            if isinstance(value, str) and value and _TELLING_KEY.search(key):
                yield _fault(below, f"a value named '{key}'")
            else:
                yield from credential_faults(value, below)
    elif isinstance(data, list):
        for value in data:
            yield from credential_faults(value, path)
    elif isinstance(data, str) and (what := _secret_in(data)):
        yield _fault(path, what)


def _fault(path: str, what: str) -> Fault:
    return Fault(
        path, f"holds {what} (not shown); take it out, secrets come from the environment or the instance's role"
    )
