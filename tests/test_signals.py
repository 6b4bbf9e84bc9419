"""Signals become a flag, and only where they should."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from fastformer.training.signals import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _known_handlers() -> Iterator[None]:
    """Begin with handlers that raise, whatever the tests were started with, and put back all."""

    def fail(number: int, frame: object) -> None:
        raise InterruptedError(number)

    previous = {number: signal.signal(number, fail) for number in SIGNALS}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """Send a signal to this process; Python acts on it before the next line."""
    os.kill(os.getpid(), number)


@pytest.mark.smoke
@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_flag_and_the_second_acts_as_before(number: int) -> None:
    with StopRequest() as stop:
        assert stop.signal is None
        send(number)
        assert stop.signal == number
        with pytest.raises(InterruptedError):
            send(number)
    with pytest.raises(InterruptedError):
        send(number)


def test_after_one_signal_the_other_acts_as_before_too() -> None:
    with StopRequest() as stop:
        send(signal.SIGTERM)
        with pytest.raises(InterruptedError):
            send(signal.SIGINT)
    assert stop.signal == signal.SIGTERM


def test_handlers_come_back_without_a_signal_and_after_an_error() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert stop.signal is None


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        send(signal.SIGINT)
        assert stop.signal is None
        send(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    during = []

    def use() -> None:
        with StopRequest() as stop:
            during.extend(signal.getsignal(number) for number in SIGNALS)
            assert stop.signal is None

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert during == before
