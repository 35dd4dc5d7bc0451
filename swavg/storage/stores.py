"""Object stores: what a URL names, how its store is reached, and what its errors mean.

``obstore`` does the work. After any call of it a forked process must not use it (its calls would
never return), so that sources in a store say that they do not fork.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from swavg.errors import InputError, MissingDependencyError, RequestError, first_line

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az", "abfss", "https", "http", "hf")


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
    if "redirect" in first and "S3" in first:
        return first, "Set AWS_REGION to the region of the bucket."
    return first, None
