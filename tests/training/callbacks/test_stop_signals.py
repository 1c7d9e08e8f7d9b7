"""Signals are recorded and handled later, in the main thread; in another thread they are not handled."""

import os
import signal
import threading

import pytest

from tf_mlm.errors import Interrupted


def test_a_signal_is_recorded_and_the_handlers_are_restored(tensorflow: None) -> None:
    from tf_mlm.training.callbacks.stop_signals import StopSignals

    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        signals.handle()
        signals.handle()  # a second call changes nothing
        signals.raise_if_received(1, "RUN")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM at step 7: .* continue with --resume RUN") as error:
            signals.raise_if_received(7, "RUN")
        assert error.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_training_in_a_thread_reports_that_signals_are_not_handled(
    tensorflow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from tf_mlm.training.callbacks.stop_signals import StopSignals

    before = signal.getsignal(signal.SIGINT)
    found: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            signals.handle()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
    assert capsys.readouterr().out == "signals    not handled: training does not run in the main thread\n"
