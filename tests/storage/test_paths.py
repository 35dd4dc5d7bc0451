"""Looking at paths: the same questions of this machine and of a store have the same answers."""

import pytest

from swavg.errors import InputError
from swavg.storage import paths

FILES = {"run/a.pt": b"12345", "run/b/c.json": b"{}", "run/b/.hidden/d": b"", "run/b/e/f": b"1"}


@pytest.fixture(params=["here", "in a store"])
def root(request, bucket, tmp_path):
    for name, data in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if request.param == "here":
        return str(tmp_path)
    bucket.put(tmp_path / "run")
    return f"s3://{bucket.name}"


def test_files_and_folders_are_told_apart(root):
    names = ("run", "run/", "run/a.pt", "run/b", "run/a", "run/a.pt/x", "none/x")
    seen = {n: (paths.is_file(f"{root}/{n}"), paths.is_folder(f"{root}/{n}")) for n in names}
    assert seen == {
        "run": (False, True), "run/": (False, True), "run/a.pt": (True, False),
        "run/b": (False, True), "run/a": (False, False), "run/a.pt/x": (False, False),
        "none/x": (False, False),
    }  # fmt: skip
    # And the same once the folder was listed.
    assert paths.names_in(f"{root}/run") == ["a.pt", "b"]
    again = {n: (paths.is_file(f"{root}/{n}"), paths.is_folder(f"{root}/{n}")) for n in names}
    assert again == seen
    assert [paths.exists(f"{root}/{name}") for name in names] == [any(seen[n]) for n in names]


def test_files_below_a_folder_are_found_but_for_hidden_folders(root):
    found = [path.removeprefix(f"{root}/") for path in paths.files_below(f"{root}/run")]
    assert sorted(found) == ["run/a.pt", "run/b/c.json", "run/b/e/f"]


def test_what_is_not_there_is_an_input_error(root):
    for look in (paths.find_file, paths.names_in, paths.read_file):
        with pytest.raises(InputError) as error:
            look(f"{root}/none")
        assert str(error.value).startswith(f"{root}/none: ")
    with pytest.raises(InputError, match=r"incomplete: none.pt is missing"):
        paths.find_part(f"{root}/run/none.pt", f"{root}/run")
    with pytest.raises(InputError):
        paths.find_file(f"{root}/run")
    assert paths.names_if_any(f"{root}/none") == []
    assert paths.status(f"{root}/none") is None


def test_bytes_are_read(root):
    assert paths.read_file(f"{root}/run/a.pt") == b"12345"
    assert paths.read_file(f"{root}/run/a.pt", 3) == b"123"
    assert paths.read_file(f"{root}/run/b/.hidden/d") == b""
    with paths.reading(f"{root}/run/a.pt") as (file, read):
        assert (file.name, file.size, read(1, 3)) == (f"{root}/run/a.pt", 5, b"234")
        with pytest.raises(InputError):
            read(3, 9)
    with paths.open_binary(f"{root}/run/a.pt") as file:
        assert file.read() == b"12345"


def test_a_status_tells_one_file_from_another(root):
    one, other = paths.status(f"{root}/run/a.pt"), paths.status(f"{root}/run/b/c.json")
    assert one == paths.status(f"{root}/run/a.pt")
    assert one.size == 5
    assert one.identity != other.identity
    assert paths.status(f"{root}/run") == paths.status(f"{root}/run/")


def test_urls_are_absolute_and_normal_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.absolute("s3://b/run/") == "s3://b/run"
    assert paths.absolute("run/../a") == str(tmp_path / "a")
    assert paths.normal("s3://b/run/") == "s3://b/run"
    assert paths.normal("a//b/../c/") == "a/c"
    assert not paths.is_link("s3://b/a")


def test_folders_that_were_made_by_hand_and_odd_names(bucket):
    for key in ("run/", "run/empty/", "run/a é %25=1 #?/b c", "run/a+b"):
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=key.encode())
    url = bucket.url("run")
    assert paths.names_in(url) == ["a é %25=1 #?", "a+b", "empty"]
    assert paths.names_in(f"{url}/empty") == []
    assert paths.is_folder(f"{url}/empty")
    assert paths.read_file(f"{url}/a é %25=1 #?/b c") == "run/a é %25=1 #?/b c".encode()
    assert paths.read_file(f"{url}/a+b") == b"run/a+b"


def test_all_names_of_a_folder_are_one_request(bucket, proxy, tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.pt").write_bytes(b"1")
    bucket.put(tmp_path, "run")
    url = bucket.url("run")
    names = paths.names_in(url)
    assert len(names) == 20
    assert all(paths.is_file(f"{url}/{name}") for name in names)
    assert not any(paths.exists(f"{url}/{name}/x/y") for name in names)
    assert not paths.exists(f"{url}/other")
    paths.check_all([paths.find_file(f"{url}/{name}") for name in names[:0]])
    assert len(proxy.requests) == 1


def test_an_object_that_changed_is_noticed_by_a_look(bucket, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    url = bucket.put(tmp_path / "a")
    found = paths.find_file(url)
    paths.check_all([found])
    (tmp_path / "a").write_bytes(b"2")
    bucket.put(tmp_path / "a")
    with pytest.raises(InputError, match="changed while it was read"):
        paths.check_all([found])


def test_what_is_only_read_here_names_the_command_that_copies():
    paths.check_local("run/step-1", "is read here")
    with pytest.raises(InputError, match="is read here") as error:
        paths.check_local("s3://b/run/step 1/", "is read here")
    assert error.value.hint == "Copy it first:\naws s3 cp --recursive 's3://b/run/step 1' 'step 1'"
