"""What a sweep's driver asks of whoever shows it live.

Owns the contract only; `report/` implements it and hands it to the runner, so that the sweep knows no terminal.
"""

from __future__ import annotations

from typing import Any, Protocol


class Display(Protocol):
    """Three calls, never two at once; what a display cannot show it leaves out."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Take one journal entry, right after it became durable."""

    def on_progress(self, snapshot: dict[str, dict[str, Any]]) -> None:
        """Take the newest progress of each running trial, about twice a second."""

    def close(self) -> None:
        """Show the last state and give the terminal back."""
