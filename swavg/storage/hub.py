"""Models on the hub of Hugging Face: what is there, at one commit. The bytes come as from any
server of https."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote

from swavg.errors import InputError, MissingDependencyError, SwavgError, first_line
from swavg.storage.stored import Stored
from swavg.storage.stores import Location

if TYPE_CHECKING:
    from types import ModuleType

_SECONDS = 60.0
"""How long after its last use a revision is taken to be the commit that it was: the files of one
checkpoint are of one commit, and a process that goes on sees the next one."""

_lock = threading.Lock()
_commits: dict[str, tuple[float, str]] = {}


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingDependencyError(
            "hf:// needs huggingface_hub.", hint="pip install 'swavg[hub]'"
        ) from None
    return huggingface_hub


def _repository(location: Location) -> tuple[str, str]:
    """The name of the model, and the commit, if that is known, or the revision."""
    name, _, revision = location.bucket.partition("@")
    with _lock:
        until, commit = _commits.get(location.bucket, (0.0, ""))
    return name, commit if until > time.monotonic() else unquote(revision) or "main"


def look(location: Location) -> Stored:
    """The file that is there now, at the commit that it is of; in a thread of its own.
    InputError."""
    hub = _hub()
    name, revision = _repository(location)
    with _errors(location.url):
        url = hub.hf_hub_url(name, location.key, revision=revision)
        found = hub.get_hf_file_metadata(url, retry_on_errors=True)
        commit, size = found.commit_hash, found.size
    if commit is None or size is None:
        raise InputError(location.url, "the hub does not say of which commit and size it is")
    with _lock:
        _commits[location.bucket] = time.monotonic() + _SECONDS, commit
    place = Location("hf", f"{name}@{commit}", location.key)
    return Stored(location.url, place, size, found.etag, None, fixed=True)


def names_in(location: Location) -> dict[str, bool]:
    """The names in a folder, and whether each is a file; none if there is no such folder; in a
    thread of its own. InputError."""
    hub = _hub()
    name, revision = _repository(location)
    found: dict[str, bool] = {}
    try:
        with _errors(location.url):
            inside = location.key or None
            for entry in hub.HfApi().list_repo_tree(name, inside, revision=revision):
                inner = entry.path.rpartition("/")[2]
                if inner not in ("", ".", ".."):
                    found[inner] = isinstance(entry, hub.hf_api.RepoFile)
    except InputError as error:
        if error.absent:
            return {}
        raise
    return found


def store_url(bucket: str) -> tuple[str, dict[str, str]]:
    """Where the files of a model at a commit are, and what is sent with each request."""
    hub = _hub()
    name, _, commit = bucket.partition("@")
    token = hub.get_token()
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return f"{hub.constants.ENDPOINT}/{name}/resolve/{commit}", headers


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """What the hub says, as an InputError about ``url``."""
    from huggingface_hub import errors

    denied = "Is it private or gated? Then run `hf auth login`, or set HF_TOKEN."
    try:
        yield
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        revision = isinstance(error, errors.RevisionNotFoundError)
        problem = "no such revision on the hub" if revision else "no such file on the hub"
        raise InputError(url, problem, absent=not revision) from None
    except errors.RepositoryNotFoundError:
        raise InputError(url, "no such model on the hub", hint=denied) from None
    except errors.OfflineModeIsEnabled:
        raise InputError(
            url,
            "is on the hub, and HF_HUB_OFFLINE is set",
            hint="Give the folder of the model in the cache: models--ORG--NAME.",
        ) from None
    except errors.HfHubHTTPError as error:
        raise InputError(url, f"the hub refused it: {first_line(error)}", hint=denied) from None
    except SwavgError:
        raise
    except Exception as error:  # of the library below the hub's
        raise InputError(url, f"the hub cannot be reached: {first_line(error)}") from None
