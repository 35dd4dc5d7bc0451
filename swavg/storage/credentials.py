"""Whether there are credentials for a store, where its own tools look for them. Nothing is read
that the store's library reads itself; no secret is kept here."""

from __future__ import annotations

import os
import shlex
import socket
from typing import Any

from swavg.errors import RequestError

_METADATA = ("169.254.169.254", 80)
"""Where a machine in a cloud asks who it is."""
_TRUE = ("1", "true", "yes", "on", "y", "t")


def s3(bucket: str) -> dict[str, Any]:
    """What the store of a bucket is opened with besides what is in the environment. RequestError
    where nobody says who one is."""
    if (
        _is_set("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        or _flag("AWS_SKIP_SIGNATURE")
        or _is_set("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")
        or _is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        or _is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    ):
        return {}
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ProfileNotFound
        from botocore.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if not os.environ.get("AWS_PROFILE") and _in_a_cloud():
            return {}
        raise _missing(
            f"s3://{bucket}",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; or for AWS_PROFILE and the files in"
            " ~/.aws: pip install 'swavg[aws]'; or for a public bucket: AWS_SKIP_SIGNATURE=true",
        ) from None
    core = Session()
    try:
        session = boto3.Session(botocore_session=core)
        if session.get_credentials() is None:
            raise _missing(
                f"s3://{bucket}",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of"
                " `aws configure`; or for a public bucket: AWS_SKIP_SIGNATURE=true",
            )
        settings: dict[str, Any] = {"credential_provider": Boto3CredentialProvider(session)}
        endpoint = core.get_scoped_config().get("endpoint_url")
    except ProfileNotFound as error:
        known = ", ".join(core.available_profiles)
        ways = f"Set AWS_PROFILE to one that there is: {known}; or make it" if known else "Make it"
        name = shlex.quote(error.kwargs["profile"])
        raise RequestError(
            f"s3://{bucket}: {error}.", hint=f"{ways}:\naws configure --profile {name}"
        ) from None
    except BotoCoreError as error:
        raise RequestError(f"s3://{bucket}: {error}.") from None
    if endpoint and not _is_set("AWS_ENDPOINT_URL"):
        settings["endpoint"] = endpoint
    return settings


def google(bucket: str) -> None:
    """RequestError where nothing says who one is at Google."""
    home = os.path.expanduser("~/.config/gcloud/application_default_credentials.json")
    names = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT",
             "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY")  # fmt: skip
    if not (
        any(map(_is_set, names))
        or _flag("GOOGLE_SKIP_SIGNATURE")
        or os.path.exists(home)
        or _in_a_cloud()
    ):
        raise _missing(
            f"gs://{bucket}",
            "Set GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login; or"
            " for a public bucket: GOOGLE_SKIP_SIGNATURE=true",
        )


def azure(bucket: str, account: str | None) -> None:
    """RequestError where nothing says which account it is (None: the environment does), or who
    one is there."""
    if _flag("AZURE_STORAGE_USE_EMULATOR"):
        return
    if account is None and not _is_set("AZURE_STORAGE_ACCOUNT_NAME"):
        raise _missing(
            f"az://{bucket}",
            "Set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or"
            " AZURE_STORAGE_SAS_TOKEN",
        )
    names = (
        "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE",
        "IDENTITY_ENDPOINT", "MSI_ENDPOINT",
    )  # fmt: skip
    flags = ("AZURE_SKIP_SIGNATURE", "AZURE_USE_AZURE_CLI")
    if not (any(map(_is_set, names)) or any(map(_flag, flags)) or _in_a_cloud()):
        raise _missing(
            f"{'az' if account is None else 'abfss'}://{bucket}",
            "Set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_USE_AZURE_CLI=true"
            " after `az login`; or for a public container: AZURE_SKIP_SIGNATURE=true",
        )


def _missing(place: str, ways: str) -> RequestError:
    return RequestError(f"{place}: there are no credentials.", hint=f"{ways}.")


def _is_set(*names: str) -> bool:
    return all(os.environ.get(name) for name in names)


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in _TRUE


def _in_a_cloud() -> bool:
    """Whether this is a machine of a cloud, which gives credentials itself."""
    if _flag("AWS_EC2_METADATA_DISABLED"):
        return False
    try:
        socket.create_connection(_METADATA, timeout=1).close()
    except OSError:
        return False
    return True
