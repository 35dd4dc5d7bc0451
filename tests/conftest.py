"""What holds for every test."""

import signal

import pytest


@pytest.fixture(autouse=True)
def default_signals():
    """Signals do what they do by default, whatever the parent ignores (nohup) and whatever a
    command in this process has changed."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
