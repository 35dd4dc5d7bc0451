"""What URLs name, how stores are reached, and what their errors mean."""

import subprocess
import sys

import pytest
from object_stores import KEYS
from obstore.exceptions import PermissionDeniedError

from swavg.errors import InputError, RequestError
from swavg.storage.stores import (
    Location,
    is_url,
    locate,
    store_of,
    told,
)


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket/run/a.pt", Location("s3", "bucket", "run/a.pt")),
        ("s3://bucket/run/", Location("s3", "bucket", "run")),
        ("s3://bucket", Location("s3", "bucket", "")),
        ("s3://bucket/a b=1/100%.pt", Location("s3", "bucket", "a b=1/100%.pt")),
        ("gs://bucket/a.pt", Location("gs", "bucket", "a.pt")),
        ("az://container/a.pt", Location("az", "container", "a.pt")),
        (
            "abfss://c@account.dfs.core.windows.net/a.pt",
            Location("abfss", "c@account.dfs.core.windows.net", "a.pt"),
        ),
        ("https://host:8080/a%20b.pt", Location("https", "host:8080", "a b.pt")),
        ("hf://org/name/a.pt", Location("hf", "org/name", "a.pt")),
        ("hf://org/name@v1/sub/a.pt", Location("hf", "org/name@v1", "sub/a.pt")),
    ],
)
def test_a_url_names_a_place_in_a_store(url, location):
    assert is_url(url)
    assert locate(url) == location
    assert locate(location.url) == location


@pytest.mark.parametrize(
    "path", ["run/a.pt", "/s3:/a", "s3:a", "file://a", "ftp://a/b", "C:\\a", ""]
)
def test_other_paths_are_those_of_this_machine(path):
    assert not is_url(path)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket//key", "empty part"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/../b", "'..'"),
        ("s3://bucket/./b", "'.'"),
        ("hf://name", "names no model"),
        ("hf://datasets/org/name/a", "names no model"),
        ("https://host/a?token=secret", "question mark"),
        ("https://user:secret@host/a", "user name"),
    ],
)
def test_a_url_that_can_name_nothing_is_refused_and_tells_no_secret(url, problem):
    with pytest.raises(InputError, match=problem) as error:
        locate(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "ways"),
    [
        ("s3://b/a", ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SKIP_SIGNATURE"]),
        ("gs://b/a", ["GOOGLE_APPLICATION_CREDENTIALS", "gcloud auth application-default login"]),
        ("az://b/a", ["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_TOKEN"]),
        ("abfss://b@account.dfs.core.windows.net/a", ["AZURE_STORAGE_ACCOUNT_KEY", "az login"]),
    ],
)
def test_without_credentials_it_says_where_they_are_looked_for(url, ways, monkeypatch, tmp_path):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RequestError, match="no credentials") as error:
        store_of(locate(url))
    assert error.value.hint is not None
    assert all(way in error.value.hint for way in ways)


def test_an_address_without_a_scheme_is_refused(monkeypatch):
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": "127.0.0.1:9000"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="AWS_ENDPOINT_URL is no URL") as error:
        store_of(locate("s3://bucket-without-a-scheme/a"))
    assert "http://" in str(error.value.hint)


def test_a_profile_is_taken_from_the_files_of_the_aws_tools(monkeypatch, tmp_path):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "credentials").write_text(
        "[mine]\naws_access_key_id = an-id\naws_secret_access_key = a-very-secret-key\n"
    )
    (tmp_path / "config").write_text(
        "[profile mine]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:9\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = store_of(locate("s3://of-a-profile/a"))
    assert store.config["region"] == "eu-west-1"
    assert store.config["endpoint"] == "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(RequestError, match="other") as error:
        store_of(locate("s3://of-another-profile/a"))
    ways, command = str(error.value.hint).split("\n")
    assert ways == "Set AWS_PROFILE to one that there is: mine; or make it:"
    assert command == "aws configure --profile other"


def test_without_obstore_it_says_what_to_install():
    code = (
        "import sys; sys.modules['obstore.store'] = None\n"
        "from swavg.storage.stores import *\n"
        "try:\n    store_of(locate('s3://b/a'))\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == (
        "MissingDependencyError s3:// needs obstore. pip install 'swavg[object-stores]'\n"
    )


def test_of_an_error_its_first_line_is_told_without_signatures():
    text = (
        "No privileges for path a: Error performing GET http://h/b/a?X-Signature=secret in 2ms -"
        " Server returned non-2xx status code: 403 Forbidden: <Error><Code>ExpiredToken</Code>"
        "</Error>\n\nDebug source: all that there is"
    )
    problem, hint = told(PermissionDeniedError(text))
    assert problem == (
        "access was denied: No privileges for path a: Error performing GET http://h/b/a in 2ms -"
        " Server returned non-2xx status code: 403 Forbidden (ExpiredToken)"
    )
    assert hint is not None
    assert told(FileNotFoundError(text)) == ("no such object", None)


def test_a_region_is_a_way_out_for_buckets_alone():
    problem = "error following redirect"
    assert told(OSError(f"Generic HTTP error: {problem}")) == (
        f"Generic HTTP error: {problem}",
        None,
    )
    problem = "Generic S3 error: Received redirect without LOCATION"
    assert told(OSError(problem)) == (problem, "Set AWS_REGION to the region of the bucket.")
