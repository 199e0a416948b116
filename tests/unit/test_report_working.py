"""How far a long command is: what a log gets to read, and that a terminal gets a bar instead."""

from __future__ import annotations

import io

import pytest

from tlcore.report.working import LINE_EVERY_S, Working

pytestmark = pytest.mark.unit


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_when_something_begins_and_now_and_then():
    now, stream = [0.0], io.StringIO()
    with Working(stream=stream, clock=lambda: now[0]) as working:
        working.update("listing chunks")
        for done in range(100):
            now[0] = done * LINE_EVERY_S / 50
            working.update("deleting", done, 100)
    assert stream.getvalue().splitlines() == ["listing chunks", "deleting: 0 of 100", "deleting: 50 of 100"]


def test_bytes_are_shown_as_sizes():
    stream = io.StringIO()
    with Working(in_bytes=True, stream=stream) as working:
        working.update("t000 step 200", 3 << 19, 3 << 30)
    assert stream.getvalue() == "t000 step 200: 1.5 MiB of 3 GiB\n"


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with Working(stream=stream) as working:
        working.update("deleting", 3, 10)
        working._bar.refresh()
        assert "deleting" in stream.getvalue()
        assert "3 of 10" in stream.getvalue()
    assert stream.getvalue().endswith(("\x1b[2K", "\x1b[?25h"))
