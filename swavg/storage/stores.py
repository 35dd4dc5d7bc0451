"""Object stores: what a URL names, how its store is reached, and what its errors mean.

``obstore`` does the work, with two limits. After any call of it a forked process must not use it
(its calls would never return), so that sources in a store say that they do not fork. And a call of
it does not heed an interrupt before it has ended, so that :func:`call` makes each in a thread that
nobody has to wait for.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from swavg.errors import InputError, MissingDependencyError, RequestError, first_line

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az", "abfss", "https", "http", "hf")
_MOST_CALLS = 64
"""Calls of stores at the same time."""


def is_url(path: str) -> bool:
    """Whether a path names something in a store."""
    scheme, found, _ = path.partition("://")
    return found != "" and scheme in SCHEMES


def looks_like_url(path: str) -> bool:
    """Whether a path is meant to be a URL, also one of a kind that is unknown, or of which pathlib
    made a path."""
    scheme, found, rest = path.partition(":")
    return found != "" and (
        (len(scheme) > 1 and scheme.isalnum() and rest.startswith("//"))
        or (scheme in SCHEMES and rest.startswith("/"))
    )


@dataclass(frozen=True, slots=True)
class Location:
    """What a URL names: a picklable value without any secret.

    ``bucket`` is the container of Azure (``container@account...`` for ``abfss``), the host of
    ``https``, and ``ORG/NAME@REVISION`` of ``hf``. ``key`` is as the store has it: nothing in it
    is escaped, and it has no slash at its end (empty: the bucket itself).
    """

    scheme: str
    bucket: str
    key: str

    @property
    def url(self) -> str:
        key = self.key
        if self.scheme in ("https", "http"):
            from urllib.parse import quote

            key = quote(key)
        return f"{self.scheme}://{self.bucket}/{key}"


def locate(url: str) -> Location:
    """What a URL names. InputError for one that cannot name anything."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme in ("https", "http"):
        if "?" in url or "#" in url or "@" in bucket:
            # What stands there may be secret, and a recipe names its inputs.
            raise InputError(
                url.partition("?")[0] if "@" not in bucket else f"{scheme}://...",
                "a URL with a question mark, a # or a user name in it is not read",
                hint="Give it without them, or download the file first.",
            )
        from urllib.parse import unquote

        key = unquote(key)
    elif scheme == "hf":
        name, _, key = key.partition("/")
        bucket = f"{bucket}/{name}"
        if bucket.startswith(("datasets/", "spaces/")) or not all(bucket.split("/")):
            raise InputError(url, "names no model", hint="Models are hf://ORG/NAME/PATH.")
    key = key.rstrip("/")
    if not bucket:
        raise InputError(url, "names no bucket", hint=f"Write {scheme}://BUCKET/KEY.")
    if key.startswith("/") or not {"", ".", ".."}.isdisjoint(key.split("/") if key else ()):
        raise InputError(url, "has an empty part, '.' or '..' in its key, which stores cannot name")
    return Location(scheme, bucket, key)


def store_of(location: Location) -> ObjectStore:
    """The store that a location lies in, opened once. MissingDependencyError without obstore,
    RequestError where credentials are missing: before anything is sent."""
    return _store(location.scheme, location.bucket)


@cache
def _store(scheme: str, bucket: str) -> ObjectStore:
    try:
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ImportError:
        raise MissingDependencyError(
            f"{scheme}:// needs obstore.", hint="pip install 'swavg[object-stores]'"
        ) from None
    from swavg.storage.credentials import azure, google, s3

    options = _options(scheme)
    if scheme == "s3":
        settings = s3(bucket)
        if str(settings.get("endpoint", "")).startswith("http://"):
            options["client_options"]["allow_http"] = True
        return S3Store(bucket, **settings, **options)
    if scheme == "gs":
        google(bucket)
        return GCSStore(bucket, **options)
    if scheme == "abfss":
        container, _, host = bucket.partition("@")
        account = host.partition(".")[0]
        if not account:
            raise RequestError(
                f"abfss://{bucket} names no account.",
                hint="Write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY.",
            )
        azure(bucket, account)
        return AzureStore(container, account_name=account, **options)
    if scheme == "az":
        azure(bucket, None)
        return AzureStore(bucket, **options)
    if scheme == "hf":
        from swavg.storage.hub import store_url

        url, headers = store_url(bucket)
        if url.startswith("http://"):
            options["client_options"]["allow_http"] = True
        options["client_options"]["default_headers"] = headers
        return HTTPStore.from_url(url, **options)
    return HTTPStore.from_url(f"{scheme}://{bucket}", **options)


def _options(scheme: str) -> dict[str, Any]:
    from datetime import timedelta

    # The time of a whole answer, which is a few MiB; and that without a byte of it.
    client: dict[str, object] = {"timeout": "120s", "read_timeout": "20s"}
    endpoints = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT")
    for name in endpoints[:2] if scheme == "s3" else ():
        if (address := os.environ.get(name)) and "://" not in address:
            raise RequestError(f"{name} is no URL.", hint="Write http:// or https:// before it.")
    if scheme == "http" or any(os.environ.get(e, "").startswith("http://") for e in endpoints):
        # Whoever wrote it so wants it so.
        client["allow_http"] = True
    retries = {"max_retries": 10, "retry_timeout": timedelta(seconds=180)}
    return {"client_options": client, "retry_config": retries}


def is_denied(error: BaseException) -> bool:
    """Whether a store's error says that one may not do it."""
    from obstore import exceptions

    denied = exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
    return isinstance(error, denied) or "403 Forbidden" in first_line(error)


def told(error: BaseException) -> tuple[str, str | None]:
    """What a store's error means, and a way out: never more than its first line, which names no
    secret."""
    from obstore import exceptions

    # What stands behind a question mark may be a signature.
    first = re.sub(r"\?\S+|: <.*", "", first_line(error)).rstrip(" :{")
    if code := re.search(r"<Code>(\w+)</Code>", str(error)):
        first += f" ({code[1]})"
    if isinstance(error, FileNotFoundError):
        return "no such object", None
    if is_denied(error):
        return f"access was denied: {first}", (
            "Are the credentials those of its owner, and have they expired? docs/scale.md says"
            " where they are looked for."
        )
    if isinstance(error, exceptions.NotSupportedError):
        return f"the server does not do what is needed: {first}", "Download the file first."
    if "404 Not Found" in first:
        return "no such bucket", None
    if "error sending request" in first:
        return f"cannot be reached: {first}", (
            "Is the address right, also that in AWS_ENDPOINT_URL if it is set, and is there a"
            " network?"
        )
    if "redirect" in first:
        return first, "Set AWS_REGION to the region of the bucket."
    return first, None


class Abandoned(Exception):
    """Nobody wants to know any more what becomes of a call."""


class Call(Generic[T]):
    """A call that was handed to a thread, by the thread that waits for it. ``changed`` is told of
    its end, and by whoever has done a part of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._owner = threading.get_ident()
        self._value: T
        self.changed = threading.Condition()
        self.done = False
        self.error: BaseException | None = None

    def run(self) -> None:
        error = None
        if not self.done:
            try:
                self._value = self._function()
            except BaseException as failure:  # what panics in obstore is no Exception
                error = failure
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            if not self.done:
                self.done, self.error = True, error
            self.changed.notify_all()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready, or has ended: raises what it raised. An interrupt ends the wait,
        and so does :func:`abandoned`."""
        with self.changed:
            while not self.done and not ready():
                if self._owner in _abandoned:
                    raise Abandoned
                self.changed.wait()
        if self.error is not None:
            raise self.error

    def result(self) -> T:
        """What it returned, or raised."""
        self.wait(lambda: False)
        return self._value

    @property
    def owner(self) -> int:
        return self._owner


_this_thread = threading.local()
_abandoned: set[int] = set()
"""Threads that are to wait for no call any more."""


class _Callers:
    """Daemon threads that make calls: started when they are needed, and never waited for."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call[Any]] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._process = 0
        """The one that made the first call."""
        self.pending: set[Call[Any]] = set()

    def submit(self, made: Call[Any]) -> None:
        self._process = self._process or os.getpid()
        if self._process != os.getpid():
            raise RequestError(
                "Object stores were used before this process was forked, and cannot be used in it.",
                hint='Start it with multiprocessing.get_context("spawn").',
            )
        with self._lock:
            self.pending.add(made)
            more = len(self.pending) > self._threads and self._threads < _MOST_CALLS
            self._threads += more
        self._calls.put(made)
        if more:
            try:
                threading.Thread(target=self._work, daemon=True, name="swavg-store").start()
            except RuntimeError:
                # The system allows no more: those that there are do it.
                with self._lock:
                    self._threads -= 1
                    if not self._threads:
                        raise

    def _work(self) -> None:
        _this_thread.makes_calls = True
        while True:
            made = self._calls.get()
            made.run()
            with self._lock:
                self.pending.discard(made)

    def of(self, owners: Collection[int]) -> list[Call[Any]]:
        """What these threads may be waiting for."""
        with self._lock:
            return [made for made in self.pending if made.owner in owners]


_callers = _Callers()


def submit(made: Call[Any]) -> None:
    """Begin a call of a store, beside others."""
    _callers.submit(made)


def begin(function: Callable[..., T], *args: object, **options: object) -> Call[T]:
    """The call of a store, which has begun."""
    made = Call(partial(function, *args, **options))
    submit(made)
    return made


def call(function: Callable[..., T], *args: object, **options: object) -> T:
    """A call of a store whose wait ends with an interrupt. What it raises is raised."""
    if getattr(_this_thread, "makes_calls", False):
        return function(*args, **options)
    return begin(function, *args, **options).result()


@contextmanager
def abandoned(owners: Collection[int]) -> Iterator[None]:
    """In the block these threads wait for no call: it raises Abandoned in them."""
    _abandoned.update(owners)
    for made in _callers.of(owners):
        made.end(Abandoned())
    try:
        yield
    finally:
        _abandoned.difference_update(owners)
