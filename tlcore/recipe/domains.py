"""One search domain: what a searched setting may be, and how a value is drawn.

Owns the six kinds (choice, uniform, loguniform, quniform, randint, grid): shape, range rules, drawing, membership,
and the values by which a domain is tried out before a sweep starts. Does not know which setting it belongs to
(`space.py` does). Called by `schema.py`, `space.py` and `space_checks.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Number = int | float
Scalar = None | bool | int | float | str
KINDS: Final = ("choice", "uniform", "loguniform", "quniform", "randint", "grid")
TRY_ALL_BELOW: Final = 33
"""A domain of whole numbers with fewer values than this is tried out value by value."""

_Values = Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)]
_Range = Annotated[tuple[Number, Number], Field(strict=False)]
_Steps = Annotated[tuple[Number, Number, Number], Field(strict=False)]
_Whole = Annotated[tuple[int, int], Field(strict=False)]
_Conditions = Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)]


class Domain(BaseModel):
    """One kind with its values, as the YAML has it: `{loguniform: [1e-5, 1e-3], when: {transfer.strategy: full}}`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    choice: _Values | None = None
    """One of these values, each equally likely."""
    uniform: _Range | None = None
    """A number in [low, high], every part of the range equally likely."""
    loguniform: _Range | None = None
    """A number in [low, high], every factor equally likely; low is above 0."""
    quniform: _Steps | None = None
    """[low, high, step]: a multiple of step in [low, high], each equally likely; whole numbers when all three are."""
    randint: _Whole | None = None
    """A whole number in [low, high], both ends included."""
    grid: _Values | None = None
    """Every one of these values, crossed with the other grids; needs `algorithm: grid`."""
    when: dict[str, Scalar | _Conditions] = Field(default_factory=dict)
    """Setting -> value or list of values: searched only in points where each of these settings has such a value."""

    @model_serializer(mode="wrap")
    def _only_what_is_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given = self.model_fields_set
        return {key: value for key, value in handler(self).items() if key in given}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds given; one in a sound domain."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def kind(self) -> str:
        """The kind of a sound domain."""
        return self.kinds[0]

    @property
    def listed(self) -> tuple[Scalar, ...] | None:
        """Every value the domain can give, in order, or None when they are too many to list."""
        if self.choice is not None or self.grid is not None:
            return self.choice or self.grid
        if self.randint is not None and self.randint[1] - self.randint[0] < TRY_ALL_BELOW - 1:
            return tuple(range(self.randint[0], self.randint[1] + 1))
        if self.quniform is not None:
            first, last = _step_numbers(self.quniform)
            if last - first < TRY_ALL_BELOW - 1:
                return tuple(_multiple(self.quniform, number) for number in range(first, last + 1))
        return None

    def allowed_by(self, key: str) -> tuple[Scalar, ...]:
        """The values of setting `key` under which this domain is searched."""
        wanted = self.when[key]
        return wanted if isinstance(wanted, tuple) else (wanted,)


def _step_numbers(steps: tuple[Number, Number, Number]) -> tuple[int, int]:
    """First and last k with low <= k * step <= high, exact for decimal fractions such as 0.1."""
    low, high, step = (Decimal(str(part)) for part in steps)
    return int((low / step).to_integral_value(ROUND_CEILING)), int((high / step).to_integral_value(ROUND_FLOOR))


def _multiple(steps: tuple[Number, Number, Number], number: int) -> Number:
    if all(isinstance(part, int) for part in steps):
        return number * int(steps[2])
    return float(Decimal(str(steps[2])) * number)


def range_faults(domain: Domain) -> Iterator[str]:
    """What is wrong with the domain itself, in plain words, without its path."""
    if len(domain.kinds) != 1:
        given = f"gives {' and '.join(domain.kinds)}" if domain.kinds else "gives no domain"
        yield f"{given}; give exactly one of {', '.join(KINDS)}"
        return
    kind = domain.kind
    values: tuple[Any, ...] = getattr(domain, kind)
    if kind in ("choice", "grid"):
        yield from _repeated(kind, values)
        return
    low, high = values[0], values[1]
    if low >= high:
        yield f"{kind} from {low} to {high} is empty; the first must be below the second"
    elif kind == "loguniform" and low <= 0:
        yield f"loguniform from {low} has no logarithm; start above 0, or use uniform"
    elif kind == "quniform":
        if values[2] <= 0:
            yield f"quniform step {values[2]} must be above 0"
        elif _step_numbers(values)[0] > _step_numbers(values)[1]:
            text = f"quniform has no multiple of {values[2]} between {low} and {high}"
            yield f"{text}; widen the range or make the step smaller"


def _repeated(kind: str, values: tuple[Scalar, ...]) -> Iterator[str]:
    for place, value in enumerate(values):
        if any(same_value(value, earlier) for earlier in values[:place]):
            yield f"{kind} gives {value!r} twice; keep one"


def same_value(one: Scalar, other: Scalar) -> bool:
    """Equality as a recipe means it: 1 is 1.0, but true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def draw(domain: Domain, rng: random.Random) -> Scalar:
    """One value of the domain. A grid is drawn from as a choice."""
    if domain.uniform is not None:
        return _inside(domain.uniform, rng.uniform(*domain.uniform))
    if domain.loguniform is not None:
        low, high = domain.loguniform
        return _inside(domain.loguniform, math.exp(rng.uniform(math.log(low), math.log(high))))
    if domain.quniform is not None:
        return _multiple(domain.quniform, rng.randint(*_step_numbers(domain.quniform)))
    if domain.randint is not None:
        return rng.randint(*domain.randint)
    return rng.choice(domain.choice or domain.grid or ())


def _inside(bounds: tuple[Number, Number], value: float) -> float:
    """Rounding in exp and log may step over an end by one unit in the last place."""
    return float(min(max(value, bounds[0]), bounds[1]))


def nearest(domain: Domain, value: float) -> Number:
    """The number of a range that lies nearest to `value`."""
    if domain.quniform is not None:
        first, last = _step_numbers(domain.quniform)
        return _multiple(domain.quniform, min(max(round(value / domain.quniform[2]), first), last))
    if domain.randint is not None:
        return min(max(round(value), domain.randint[0]), domain.randint[1])
    return _inside(domain.uniform or domain.loguniform or (value, value), value)


def unit_of(domain: Domain, value: Number) -> float:
    """Where a number lies in its range, from 0 to 1; on a logarithmic scale for loguniform."""
    low, high = scale_ends(domain)
    place = math.log(value) if domain.loguniform is not None else value
    return min(1.0, max(0.0, (place - low) / (high - low)))


def from_unit(domain: Domain, place: float) -> Number:
    """The number of a range at a place from 0 to 1: the inverse of `unit_of`."""
    low, high = scale_ends(domain)
    value = low + min(1.0, max(0.0, place)) * (high - low)
    return nearest(domain, math.exp(value) if domain.loguniform is not None else value)


def scale_ends(domain: Domain) -> tuple[float, float]:
    """Both ends of a range, their logarithms for loguniform."""
    low, high = domain.uniform or domain.loguniform or domain.randint or (domain.quniform or (0, 1))[:2]
    return (math.log(low), math.log(high)) if domain.loguniform is not None else (float(low), float(high))


def steps_of(domain: Domain) -> tuple[int, int] | None:
    """First and last multiple of a quniform's step, None for other kinds."""
    return _step_numbers(domain.quniform) if domain.quniform is not None else None


def multiple_of(domain: Domain, number: int) -> Number:
    """Multiple `number` of a quniform's step."""
    assert domain.quniform is not None
    return _multiple(domain.quniform, number)


def trial_values(domain: Domain) -> tuple[Scalar, ...]:
    """Values that show whether a setting can take this domain: all of a short list; else both ends and some between.

    Neighbours of the low end are among them, so that a whole-number range over a setting that must divide is found
    out, and an uneven number inside a continuous range, so that a whole-number setting under `uniform` is.
    """
    if domain.listed is not None:
        return domain.listed
    if domain.randint is not None:
        low, high = domain.randint
        return (low, low + 1, low + 2, (low + high) // 2, high)
    if domain.quniform is not None:
        first, last = _step_numbers(domain.quniform)
        return tuple(_multiple(domain.quniform, number) for number in (first, first + 1, (first + last) // 2, last))
    low_end, high_end = domain.uniform or domain.loguniform or (0, 0)
    return (float(low_end), low_end + 0.381966 * (high_end - low_end), float(high_end))


def contains(domain: Domain, value: Scalar) -> bool:
    """Whether the domain could give this value."""
    if domain.choice is not None or domain.grid is not None:
        return any(same_value(value, one) for one in domain.choice or domain.grid or ())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if domain.randint is not None:
        return isinstance(value, int) and domain.randint[0] <= value <= domain.randint[1]
    if domain.quniform is not None:
        low, high, step = domain.quniform
        return low <= value <= high and Decimal(str(value)) % Decimal(str(step)) == 0
    low, high = domain.uniform or domain.loguniform or (0, -1)
    return low <= value <= high


def in_words(domain: Domain) -> str:
    """The domain in one line, for a plan."""
    values = ", ".join(str(value) for value in getattr(domain, domain.kind))
    conditions = [f"{key} is {' or '.join(map(str, domain.allowed_by(key)))}" for key in domain.when]
    return f"{domain.kind} [{values}]" + (f" when {' and '.join(conditions)}" if conditions else "")
