"""Models on the hub, and files of any server."""

import os
from pathlib import Path

import numpy as np
import pytest
from command_line import done, process, swavg
from make import arrays, sharded
from web_servers import COMMIT, Server, files, hub


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def two(tmp_path):
    """Two small files: their paths, and their bytes by name."""
    paths = [
        arrays(tmp_path / name, i) for i, name in enumerate(("a b.safetensors", "b.safetensors"))
    ]
    quoted = ("/a%20b.safetensors", "/b.safetensors")
    contents = [Path(path).read_bytes() for path in paths]
    return paths, dict(zip(quoted, contents, strict=True))


def test_files_of_a_server_are_averaged(two, serve, tmp_path):
    paths, contents = two
    server = serve(files(contents))
    done("average", *(server.url + name for name in contents), "-o", tmp_path / "there.safetensors")
    done("average", *paths, "-o", tmp_path / "here.safetensors")
    done("diff", tmp_path / "there.safetensors", tmp_path / "here.safetensors")
    gets = [headers for method, _, headers in server.requests if method == "GET"]
    assert gets
    for headers in gets:
        assert {"Range", "If-Match"} <= {name.title() for name in headers}


def test_without_an_etag_it_warns(two, serve, tmp_path):
    _, contents = two
    server = serve(files(contents, etag=False))
    urls = [server.url + name for name in contents]
    found = done("average", *urls, "-o", tmp_path / "out.safetensors")
    assert "no version" in found.stderr
    done("diff", urls[0], tmp_path / "a b.safetensors")


def test_a_server_without_ranges_is_refused(two, serve, tmp_path):
    _, contents = two
    server = serve(files(contents, ranges=False))
    urls = [server.url + name for name in contents]
    found = swavg("average", *urls, "-o", tmp_path / "out.safetensors")
    assert found.returncode == 4
    assert "Download the file first" in found.stderr


def test_a_folder_of_a_server_cannot_be_listed(serve):
    server = serve(files({}))
    found = swavg("list", f"{server.url}/run/")
    assert found.returncode == 4
    assert "give the URLs of single files" in found.stderr


@pytest.fixture
def model(serve, tmp_path):
    """A model on a hub: its folder here, the server of its bytes, the hub, and the environment."""
    shards = {
        f"model-0000{n}-of-00002.safetensors": {f"w{n}": np.full((30, 50), n, np.float32)}
        for n in (1, 2)
    }
    sharded(tmp_path / "name", shards, config__json='{"a": 1}', vocab__txt="words")
    contents = {path.name: path.read_bytes() for path in (tmp_path / "name").iterdir()}
    bytes_server = serve(files({f"/{name}": data for name, data in contents.items()}))
    hub_server = serve(hub(contents, bytes_server.url))
    env = {**os.environ, "HF_ENDPOINT": hub_server.url, "HF_TOKEN": "hf_secret"}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return tmp_path / "name", bytes_server, hub_server, env


def test_a_model_of_the_hub_is_averaged_at_one_commit(model, tmp_path):
    folder, bytes_server, hub_server, env = model
    other = tmp_path / "other"
    sharded(
        other,
        {
            "model-00001-of-00001.safetensors": {
                f"w{n}": np.ones((30, 50), np.float32) for n in (1, 2)
            }
        },
    )
    there, here = tmp_path / "there", tmp_path / "here"
    found = process("average", other, "hf://org/name", "-o", there, env=env)
    assert found.returncode == 0, found.stderr
    done("average", other, folder, "-o", here)
    done("diff", there, here)
    assert sorted(p.name for p in there.iterdir()) == sorted(p.name for p in here.iterdir())
    assert (there / "vocab.txt").read_text() == "words"
    resolved = [
        path for method, path, _ in hub_server.requests if method == "GET" and "resolve" in path
    ]
    assert resolved
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved)
    # The token goes to the hub, and not to where the bytes are.
    assert any("Bearer hf_secret" in str(headers) for _, _, headers in hub_server.requests)
    assert not any("hf_secret" in str(headers) for _, _, headers in bytes_server.requests)
    assert b"hf_secret" not in b"".join(p.read_bytes() for p in there.iterdir())


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("hf://org/name/none.safetensors", "no such file on the hub"),
        ("hf://org/other/a.safetensors", "no such model on the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_told(url, problem, model):
    found = process("inspect", url, env=model[-1])
    assert found.returncode == 4
    assert problem in found.stderr


def test_offline_it_says_so(model):
    found = process("inspect", "hf://org/name", env={**model[-1], "HF_HUB_OFFLINE": "1"})
    assert found.returncode == 4
    assert "HF_HUB_OFFLINE" in found.stderr
