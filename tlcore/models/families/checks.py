"""Checks that the configurations of this room share.

Owns the words for a value that a config.json must not have. Called by the configurations' `__post_init__`; transformers hands the
ValueError on, and `source.py` makes a ModelError of it.
"""

from __future__ import annotations

from typing import Any


def check_counts(config: Any, *names: str, least: int = 1) -> None:
    """Raise ValueError where one of these fields is no whole number of at least `least`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{config.model_type}: {name} is {value!r}; give a whole number of at least {least}")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError where the field is none of `choices`."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{config.model_type}: {name} is {value!r}; give one of {', '.join(choices)}")


def check_fraction(config: Any, *names: str) -> None:
    """Raise ValueError where one of these fields (dropout) is not in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{config.model_type}: {name} is {value!r}; give a number from 0 to below 1")
