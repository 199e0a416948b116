"""A stand-in session that leaves 64 MiB behind with every trial: what a slot must not put up with for long."""

from __future__ import annotations

from standin_session import StandInSession

LEFT_BYTES = 64 << 20
_left: list[bytearray] = []


class HoardingSession(StandInSession):
    """Keeps what it should have given back."""

    def close(self):
        super().close()
        _left.append(bytearray(b"x") * LEFT_BYTES)
