"""Where outputs may go in stores."""

from types import SimpleNamespace

import pytest

from swavg.errors import OutputError, OutputExistsError, RequestError
from swavg.storage.stores import locate, looks_like_url
from swavg.storage.upload_checks import check_absent, check_folder, check_not_input, writable


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("s3://bucket/a", True),
        ("S3://bucket/a", True),
        ("ftp://host/a", True),
        ("s3:/bucket/a", True),
        ("hf:/org/name", True),
        ("a.safetensors", False),
        ("step:100/a.pt", False),
        ("/abs/s3://x", False),
        ("c:/windows", False),
        ("s3:", False),
    ],
)
def test_what_is_meant_to_be_a_url(path, meant):
    assert looks_like_url(path) == meant


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://host/a", "nothing is written to https://.*upload that"),
        ("hf://org/name@main/a.safetensors", "hf upload org/name FOLDER"),
        ("S3://bucket/a", "nothing is written to S3://.*s3://"),
        ("s3:/bucket/a", "pathlib"),
    ],
)
def test_where_nothing_is_written_there_is_a_way_out(url, says):
    with pytest.raises(OutputError, match=says):
        writable(url)


def test_credentials_are_missed_before_anything_is_sent(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RequestError, match="no credentials"):
        writable("s3://bucket-of-nobody/a")


FILE = ("s3://b/run/1.safetensors", ["s3://b/run/1.safetensors"])
FOLDER = ("s3://b/run", ["s3://b/run/model-1.safetensors", "s3://b/run/model-2.safetensors"])


@pytest.mark.parametrize(
    ("output", "folder", "given", "problem"),
    [
        ("s3://b/run/1.safetensors", False, FILE, "is an input"),
        ("s3://b/run/2.safetensors", False, FILE, None),
        ("s3://b/run/1.safetensors/x", False, FILE, None),
        ("s3://b/run", True, FILE, "holds the input"),
        ("s3://b/", True, FILE, "holds the input"),
        ("s3://b/ru", True, FILE, None),
        ("s3://c/run", True, FILE, None),
        ("gs://b/run", True, FILE, None),
        ("s3://b/run", True, FOLDER, "is an input"),
        ("s3://b/run/model-2.safetensors", False, FOLDER, "lies in the input"),
        ("s3://b/run/avg.safetensors", False, FOLDER, "lies in the input"),
        ("s3://b/avg.safetensors", False, FOLDER, None),
        ("s3://b/run", True, ("a.safetensors", ["a.safetensors"]), None),
        ("az://b/x", False, ("abfss://b@acc.dfs.core.windows.net/x",) * 2, "is an input"),
    ],
)
def test_an_output_never_touches_an_input(output, folder, given, problem):
    path, names = given
    names = [names] if isinstance(names, str) else names
    inputs = [(path, [SimpleNamespace(name=name) for name in names])]
    if problem is None:
        check_not_input(locate(output), inputs, folder=folder)
        return
    with pytest.raises(OutputError, match=problem):
        check_not_input(locate(output), inputs, folder=folder)


def test_an_object_that_is_there_is_found(bucket):
    bucket.client.put_object(Bucket=bucket.name, Key="a/b", Body=b"old")
    check_absent(locate(bucket.url("a")), force=False)
    check_absent(locate(bucket.url("a/b")), force=True)
    with pytest.raises(OutputExistsError, match="exists already"):
        check_absent(locate(bucket.url("a/b")), force=False)


def test_a_folder_that_is_there_holds_nothing_else(bucket):
    for name in ("a/b", "a/c/d", "ab/c"):
        bucket.client.put_object(Bucket=bucket.name, Key=name, Body=b"old")
    folder = locate(bucket.url("a/"))
    with pytest.raises(OutputExistsError, match="exists already"):
        check_folder(folder, ["b", "c/d"], force=False)
    check_folder(folder, ["b", "c/d", "e"], force=True)
    with pytest.raises(OutputError, match="holds what the new checkpoint does not: c/d"):
        check_folder(folder, ["b"], force=True)
    check_folder(locate(bucket.url("other")), ["b"], force=False)


def test_a_store_that_does_not_tell_is_not_written_to(proxy, bucket):
    proxy.fault = lambda *_: (403, b"")
    with pytest.raises(OutputError, match="cannot be looked for: access was denied"):
        check_absent(locate(bucket.url("a")), force=False)
    with pytest.raises(OutputError, match="cannot be looked into: access was denied"):
        check_folder(locate(bucket.url("a")), [], force=False)
