"""What is in stores: objects and folders by their URLs, remembered for a few seconds."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Generic, TypeVar

from swavg.errors import DeniedError, InputError
from swavg.storage import hub
from swavg.storage.calls import call
from swavg.storage.stored import Stored, errors, look, of_meta
from swavg.storage.stores import Location, locate, store_of

T = TypeVar("T")

_SECONDS = 10.0
"""How long what was seen is believed."""


class _Seen(Generic[T]):
    """What was seen, by URL, with the errors that there were."""

    def __init__(self, look: Callable[[Location], T]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._seen: dict[Location, tuple[float, T | InputError]] = {}

    def forget(self) -> None:
        with self._lock:
            self._seen.clear()

    def known(self, location: Location) -> T | None:
        """What is remembered; None if nothing is."""
        with self._lock:
            until, value = self._seen.get(location, (0.0, None))
        return value if until > time.monotonic() and not isinstance(value, InputError) else None

    def __call__(self, location: Location) -> T:
        """What is there. InputError."""
        with self._lock:
            until, value = self._seen.get(location, (0.0, None))
        if value is None or until <= time.monotonic():
            try:
                value = self._look(location)
            except InputError as error:
                value = error
            with self._lock:
                self._seen[location] = time.monotonic() + _SECONDS, value
        if isinstance(value, InputError):
            raise value.with_traceback(None)
        return value


Names = dict[str, Stored | Location | None]
"""By name the object, or where it is to be looked at; None: a folder."""


def _list(location: Location) -> Names:
    """What is in a folder, which may be none."""
    import obstore

    url = location.url
    if location.scheme in ("https", "http"):
        # Servers do not tell.
        return {}
    if location.scheme == "hf":
        files = call(hub.names_in, location)
        above = f"{location.key}/" if location.key else ""
        return {
            name: replace(location, key=above + name) if is_file else None
            for name, is_file in files.items()
        }
    with errors(url):
        store = store_of(location)
        found = call(obstore.list_with_delimiter, store, location.key or None)
    names: Names = {}
    start = len(location.key) + 1 if location.key else 0
    for prefix in found["common_prefixes"]:
        names[prefix[start:].rstrip("/")] = None
    for meta in found["objects"]:
        if name := meta["path"][start:]:
            inner = Location(location.scheme, location.bucket, meta["path"])
            names[name] = of_meta(inner.url, inner, meta)
    return names


def _find(location: Location) -> Stored:
    if location.scheme == "hf":
        return call(hub.look, location)
    return call(look, location.url, location)


_folders = _Seen(_list)
_objects = _Seen(_find)


def forget() -> None:
    """Forget what was seen: for whoever has changed it."""
    _folders.forget()
    _objects.forget()


def _is_missing(error: InputError) -> bool:
    """Whether it is there for nobody, or not for us."""
    return error.absent or isinstance(error, DeniedError)


def find(url: str) -> Stored | None:
    """The object at ``url``; None if there is none. InputError."""
    location = locate(url)
    if not location.key or url.endswith("/") or _cannot_be(location):
        return None
    found = _listed(location)
    if found is None or isinstance(found, Stored):
        return found
    try:
        return _objects(location)
    except InputError as error:
        if _is_missing(error):
            return None
        raise


def _listed(location: Location) -> Stored | Location | None:
    """What the folder of a place is known to have there, as in :data:`Names`; the location itself
    if nothing is known."""
    folder, _, name = location.key.rpartition("/")
    names = _folders.known(replace(location, key=folder)) if name else None
    return names[name] if names and name in names else location


def _cannot_be(location: Location) -> bool:
    """Whether there is nothing, going by what is known of the places above."""
    parts = location.key.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        above = replace(location, key="/".join(parts[:depth]))
        if depth and _objects.known(above) is not None:
            # An object is no folder.
            return True
        if names := _folders.known(above):
            inside = depth < len(parts) - 1
            return parts[depth] not in names or (inside and names[parts[depth]] is not None)
    return False


def look_ahead(url: str) -> None:
    """List a folder; find an object, and read its beginning and its end."""
    with suppress(InputError):
        if is_folder(url):
            names_in(url)
            return
        stored = find(url)
        if stored is not None and stored.size:
            reader, byte = stored.open(), memoryview(bytearray(1))
            reader.read_into(0, byte)
            if not url.endswith(".safetensors"):
                reader.read_into(stored.size - 1, byte)


def absent(url: str) -> InputError:
    """Why there is no object at ``url``."""
    location = locate(url)
    if is_folder(url):
        return InputError(url, "is a folder, where a file is expected")
    try:
        _folders(location)
    except DeniedError as error:
        # It may be a folder, for those who may list it.
        return error
    except InputError:
        pass
    hint = _NO_PATTERNS if re.search(r"[*\[]", location.key) else None
    try:
        if not _cannot_be(location):
            _objects(location)
    except InputError as error:
        if location.scheme in ("https", "http") and error.absent:
            return InputError(url, "no such file", hint=_NO_FOLDERS, absent=True)
        if not error.absent or hint is None:
            return error
    return InputError(url, "no such object", hint=hint, absent=True)


_NO_PATTERNS = "URLs are no patterns: name each object, or give the folder and pattern='*.pt'."
_NO_FOLDERS = "A server's folders cannot be listed: give the URLs of single files."


def is_folder(url: str) -> bool:
    """Whether there are objects below ``url``."""
    location = locate(url)
    if location.key and (_cannot_be(location) or find(url) is not None):
        return False
    if _listed(location) is None:
        return True
    try:
        return bool(_folders(location))
    except InputError as error:
        if _is_missing(error):
            return False
        raise


def names_in(url: str) -> list[str]:
    """The names of what is in a folder, sorted. InputError if there is no such folder."""
    location = locate(url)
    if location.scheme in ("https", "http"):
        raise InputError(url, "no such folder", hint=_NO_FOLDERS)
    names = _folders(location)
    # Of a folder that was made by hand there may be nothing but its own key.
    if not names and _listed(location) is not None:
        raise InputError(url, "no such folder", absent=True)
    return sorted(names)
