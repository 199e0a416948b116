"""One signal asks, the next one stops; the clock is moved by hand."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tlcore.train.signals import AGAIN_S, stop_signals

pytestmark = pytest.mark.unit


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_a_later_one_stops_at_once(number):
    asked, now = [], [0.0]
    with stop_signals(lambda: asked.append(now[0]), lambda: now[0]):
        send(number)
        now[0] = AGAIN_S
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert asked == [0.0]


def test_what_comes_twice_at_once_is_one_request():
    asked = []
    with stop_signals(lambda: asked.append(1), lambda: 5.0):
        send(signal.SIGINT)
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert asked == [1]


def test_what_was_there_before_is_there_again():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), stop_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_nothing_is_changed():
    seen = []

    def work():
        with stop_signals(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
