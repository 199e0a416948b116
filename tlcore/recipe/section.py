"""What all sections of a recipe share: the base model and the names of common ranges.

Owns no setting. Called by `schema.py` and `search_schema.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """What all sections share: unknown keys refused, no type guessed, nothing changed after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class OneOf(Section):
    """A section of which exactly one key is given, or a plain word for that key with its defaults: `asha`, `{asha: {grace: 0.1}}`.

    A subclass may name in `_NOTHING` the word that stands for no key at all.
    """

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, data: Any) -> Any:
        if data is None or data == cls.nothing():
            return {}
        if isinstance(data, str):
            return {data: {}}
        return {key: {} if value is None else value for key, value in data.items()} if isinstance(data, dict) else data

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        given = {key: value for key, value in handler(self).items() if value is not None}
        if len(given) == 1 and not type(getattr(self, next(iter(given)))).model_fields:
            return next(iter(given))
        return given or self.nothing()

    @classmethod
    def nothing(cls) -> str:
        """The word for an empty section."""
        return "none"

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that are given; one in a sound section, none where the word for nothing was."""
        return tuple(key for key in type(self).model_fields if getattr(self, key) is not None)

    @property
    def name(self) -> str:
        """The key given, or the word for nothing."""
        return self.given[0] if self.given else self.nothing()
