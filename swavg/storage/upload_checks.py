"""Where in object stores outputs may go, and asking the store: known before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from swavg.errors import OutputError
from swavg.storage.calls import Call, begin
from swavg.storage.destination import exists_error
from swavg.storage.protect import Input
from swavg.storage.stores import Location, is_url, locate, store_of, told

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

_WRITABLE = ("s3", "gs", "az", "abfss")
_LISTED = 4
_POLL = 0.1
"""Seconds."""


def writable(url: str) -> Location:
    """Where a URL leads. OutputError for one to which nothing is written, RequestError where
    credentials are missing."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        bare = url.partition(":")[0]
        raise OutputError(
            url,
            f"is neither a path nor a URL: {bare}: is followed by two slashes",
            hint=f"Write {bare}://BUCKET/KEY, as text: pathlib makes one slash of two.",
        )
    if scheme not in _WRITABLE:
        hint = "Write to a local path, and upload that; or to s3://, gs://, az:// or abfss://."
        if scheme == "hf":
            repository = "/".join(rest.partition("@")[0].split("/")[:2])
            hint = f"Write to a local folder, and then: hf upload {repository} FOLDER"
        raise OutputError(url, f"nothing is written to {scheme}://", hint=hint)
    location = locate(url)
    store_of(location)
    return location


def check_not_input(location: Location, inputs: Sequence[Input], *, folder: bool) -> None:
    """OutputError if an object at ``location``, or one in the ``folder`` there, would touch an
    input."""
    own = _place(location)
    for given, sources in inputs:
        names = [source.name for source in sources]
        for name in dict.fromkeys((given, *names)):
            if not is_url(name):
                continue
            other = _place(locate(name))
            if own == other or (folder and _is_below(other, own)):
                problem = "is an input" if own == other else f"holds the input {given}"
            elif given not in names and _is_below(own, _place(locate(given))):
                problem = f"lies in the input {given}"
            else:
                continue
            hint = "swavg never writes over an input; choose another -o."
            raise OutputError(location.url, problem, hint=hint)


def _place(location: Location) -> tuple[str, str, str]:
    """The same for all spellings of a URL."""
    scheme = "az" if location.scheme == "abfss" else location.scheme
    return scheme, location.bucket.partition("@")[0], location.key


def _is_below(place: tuple[str, str, str], folder: tuple[str, str, str]) -> bool:
    return place[:2] == folder[:2] and (not folder[2] or place[2].startswith(f"{folder[2]}/"))


def check_absent(
    location: Location, *, force: bool, stop: Callable[[], None] = lambda: None
) -> None:
    """OutputExistsError if there is an object that may not be replaced. OutputError if that cannot
    be told."""
    import obstore

    if not location.key:
        raise OutputError(location.url, "names no object", hint="Write a name behind the bucket.")
    if force:
        return
    with suppress(FileNotFoundError):
        ask(location, obstore.head, location.key, stop=stop, doing="cannot be looked for")
        raise exists_error(location.url, "exists already")


def check_no_folder(location: Location) -> None:
    """OutputError if an object at ``location`` would hide the folder of that name, as far as one
    may look."""
    import obstore

    def look(store: ObjectStore) -> bool:
        found = chain.from_iterable(obstore.list(store, location.key, chunk_size=2))
        return any(meta["path"] != location.key for meta in found)

    try:
        hides = ask(location, look)
    except (FileNotFoundError, OutputError):
        return
    if hides:
        raise OutputError(
            location.url,
            "is a folder, which the output would not be",
            hint=f"Give a name in it, such as {location.url}/averaged.",
        )


def check_folder(location: Location, names: Collection[str], *, force: bool) -> None:
    """As :func:`check_absent` for a folder in which ``names`` are written. With ``force`` nothing
    else may lie there: it would be taken for a part of the new checkpoint."""
    import obstore

    start = len(location.key) + 1 if location.key else 0
    foreign: list[str] = []

    def look(store: ObjectStore, prefix: str | None) -> None:
        for meta in chain.from_iterable(obstore.list(store, prefix, chunk_size=1000)):
            name = meta["path"][start:]
            if name and not force:
                raise exists_error(location.url, "exists already")
            if name and name not in names:
                foreign.append(name)
            if len(foreign) > _LISTED:
                return

    with bucket_there(location):
        ask(location, look, location.key or None, doing="cannot be looked into")
    if foreign:
        raise OutputError(
            location.url,
            "would be replaced, but holds what the new checkpoint does not:"
            f" {', '.join(foreign[:_LISTED])}{', ...' * (len(foreign) > _LISTED)}",
            hint="Choose another -o, or remove that yourself.",
        )


@contextmanager
def bucket_there(location: Location) -> Iterator[None]:
    """OutputError where there is no bucket."""
    try:
        yield
    except FileNotFoundError:
        raise OutputError(location.url, "there is no such bucket") from None


def ended(made: Call[Any], seconds: float) -> bool:
    """Whether a call has ended, which is waited for so long."""
    with made.changed:
        return made.changed.wait_for(lambda: made.done, seconds)


def ask(
    location: Location,
    function: Callable[..., T],
    *args: object,
    stop: Callable[[], None] = lambda: None,
    doing: str = "cannot be written",
) -> T:
    """What a call of the store returns; ``stop`` is called while it lasts. FileNotFoundError where
    there is nothing; OutputError for what else the store says."""
    from obstore import exceptions

    made = begin(function, store_of(location), *args)
    while not ended(made, _POLL):
        stop()
    try:
        return made.result()
    except FileNotFoundError:
        raise
    except exceptions.AlreadyExistsError:
        raise exists_error(location.url, "was created by someone else meanwhile") from None
    except (OSError, exceptions.BaseError) as error:
        problem, hint = told(error)
        raise OutputError(location.url, f"{doing}: {problem}", hint=hint) from None
