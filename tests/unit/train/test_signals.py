"""Ctrl-C and SIGTERM are noted until the step in hand is done."""

from __future__ import annotations

import signal
import threading

import pytest

from mmcli.train.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_what_was_before_comes_back(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    said: list[str] = []
    with StopSignals(said.append) as stop:
        assert stop.received is None and not said
        signal.raise_signal(number)
        assert stop.received == number
    assert said == ["saving; Ctrl-C again discards"]
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopSignals(print) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # a second SIGTERM does not
        assert stop.received == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    inside = []

    def work() -> None:
        with StopSignals(print) as stop:
            inside.append((signal.getsignal(signal.SIGINT), stop.received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(before, None)] and signal.getsignal(signal.SIGINT) is before
