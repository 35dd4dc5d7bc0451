"""Things of the user's own code, named as ``package.module:name`` or ``path/to/file.py:name``.

The code that is named is imported and run: it is the user's, not a checkpoint's. Whatever goes
wrong in it becomes a RequestError that names the option and the place, with the original chained.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from swavg.errors import RequestError, SwavgError, some

_FORM = "Write package.module:name or path/to/file.py:name."


def load_object(text: str, option: str) -> object:
    """What ``text`` names: ``package.module:name`` or ``path/to/file.py:name``, where ``name`` may
    have dots (``Class.method``).

    Modules are found from the current folder too, as by ``python -m``. Raises RequestError.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise RequestError(f"{option}: '{text}' names nothing to import.", hint=_FORM)
    with importable(text):
        module = (_file if _is_file(place) else _module)(place, text, option)
        value: object = module
        for part in name.split("."):
            try:
                value = getattr(value, part)
            except AttributeError:
                raise _absent(text, option, place, value, part) from None
            except Exception as error:
                raise failed(f"{option}: '{part}' of {text} cannot be had", error) from error
    return value


def load_callable(text: str, option: str) -> Callable[..., Any]:
    """The callable that ``text`` names (:func:`load_object`). Raises RequestError."""
    value = load_object(text, option)
    if not callable(value):
        raise RequestError(f"{option}: {text} is {kind(value)}, which cannot be called.")
    found: Callable[..., Any] = value
    return found


def call(value: object, text: str, option: str, wanted: str) -> object:
    """What ``value``, which ``text`` names, returns without arguments. Raises RequestError."""
    if not callable(value):
        raise RequestError(
            f"{option}: {text} is {kind(value)}, neither {wanted} nor a function that returns it."
        )
    try:
        inspect.signature(value).bind()
    except TypeError as error:
        raise RequestError(
            f"{option}: {text} cannot be called without arguments ({error}).",
            hint="Name a function that takes none and passes them itself.",
        ) from error
    except ValueError:
        # Built in: it has no signature to look at.
        pass
    try:
        with importable(text):
            return value()
    except (Exception, SystemExit) as error:
        raise failed(f"{option}: calling {text} failed", error) from error


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place


_gone_to: list[str] = []
"""Where the user's code has changed the current folder to (Hydra does, for one)."""


@contextmanager
def _own_folder() -> Iterator[None]:
    """In the block, the current folder is where the user's code last was; after it, ours again:
    our inputs and outputs are named from there."""
    home = os.getcwd()
    if _gone_to and os.path.isdir(_gone_to[0]):
        os.chdir(_gone_to[0])
    inside = os.getcwd()
    try:
        yield
    finally:
        with suppress(OSError):
            if os.getcwd() != inside:
                _gone_to[:] = [os.getcwd()]
        os.chdir(home)


@contextmanager
def importable(text: str) -> Iterator[None]:
    """For a block of the user's code that ``text`` names: modules beside its file, as of a script,
    and in our folder can be imported, and the current folder may be changed."""
    place = text.rpartition(":")[0]
    beside = [os.path.dirname(os.path.abspath(place))] if _is_file(place) else []
    places = [*beside, os.getcwd()]
    sys.path[:0] = places
    try:
        with _own_folder():
            yield
    finally:
        for folder in places:
            # The user's code may have changed the path, too.
            if folder in sys.path:
                sys.path.remove(folder)


def _module(name: str, text: str, option: str) -> ModuleType:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself or one of its parents; otherwise it is an import inside it.
        missing = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        if not missing:
            raise failed(f"{option}: importing '{name}' failed", error) from error
        raise RequestError(
            f"{option}: there is no module '{error.name}' to import for {text}.",
            hint=f"Looked in '{os.getcwd()}' and the Python path. {_FORM}",
        ) from error
    except (Exception, SystemExit) as error:
        raise failed(f"{option}: importing '{name}' failed", error) from error


def _file(path: str, text: str, option: str) -> ModuleType:
    full = os.path.realpath(path)
    if not os.path.isfile(full):
        raise RequestError(f"{option}: there is no file '{path}' to import for {text}.", hint=_FORM)
    stem = os.path.splitext(os.path.basename(full))[0]
    name = stem
    # A file named by two options runs once; one named as a module that is loaded has its own name.
    while name in sys.modules or name in sys.stdlib_module_names:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and os.path.realpath(origin) == full:
            return sys.modules[name]
        name += "_"
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise RequestError(f"{option}: '{path}' is no Python file.", hint=_FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise failed(f"{option}: running '{path}' failed", error) from error
        raise
    return module


def _absent(text: str, option: str, place: str, owner: object, part: str) -> RequestError:
    names = [name for name in dir(owner) if not name.startswith("_")]
    near = difflib.get_close_matches(part, names, 1)
    where = f"'{place}'" if isinstance(owner, ModuleType) else kind(owner)
    public = some(names, 8) or "no public names"
    hint = f"Did you mean '{near[0]}'?" if near else f"It has {public}."
    return RequestError(f"{option}: {where} has no '{part}', which {text} names.", hint=hint)


def failed(what: str, error: BaseException, hint: str | None = None) -> RequestError:
    """The user's ``error`` in one line, with the line of their code that it came from."""
    if isinstance(error, SystemExit):
        said = f"it exited with {error.code!r}"
        hint = hint or "Keep what a script does under: if __name__ == '__main__'."
    else:
        # A SyntaxError's own lines show the source, too.
        lines = traceback.format_exception_only(error)
        said = f"SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else "".join(lines)
        said = " ".join(said.split())
        said = said if len(said) <= 400 else f"{said[:380]}..."
        hint = hint or "Try it in Python by itself; the error is in the code that was named."
    place = _place(error)
    return RequestError(f"{what}: {said.removesuffix('.')}{place and f' ({place})'}.", hint=hint)


@contextmanager
def users_code(what: str, hint: str | None = None) -> Iterator[None]:
    """In the block, an error of the user's code becomes a RequestError: ``what`` :func:`failed`."""
    try:
        yield
    except SwavgError:
        raise
    except Exception as error:
        raise failed(what, error, hint) from error


def _place(error: BaseException) -> str:
    """The user's last own line: in a deep stack it says more than the library's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{os.path.basename(error.filename)}, line {error.lineno}"
    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<"))
    ]
    library, packages = os.path.dirname(os.__file__) + os.sep, f"{os.sep}site-packages{os.sep}"
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(library) and packages not in frame.filename
    ]
    chosen = (own or frames)[-1:]
    return "".join(f"{os.path.basename(f.filename)}, line {f.lineno}" for f in chosen)


def kind(value: object) -> str:
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"the {'class' if inspect.isclass(value) else 'function'} {value.__qualname__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
