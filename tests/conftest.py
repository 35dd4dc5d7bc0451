"""What holds for every test."""

import os
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


@pytest.fixture(autouse=True)
def same_folder():
    """The current folder is that of before: the one that a test leaves may be gone."""
    before = os.getcwd()
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def s3_endpoint():
    """A server of S3: one for all tests."""
    from object_stores import s3_server

    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):
    """An empty bucket, which the environment leads to."""
    from object_stores import Bucket

    made = Bucket(s3_endpoint)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    yield made
    made.client.close()


@pytest.fixture
def proxy(bucket, monkeypatch):
    """What stands before the server."""
    from object_stores import Proxy

    made = Proxy(bucket.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()
