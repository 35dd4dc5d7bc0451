"""Checkpoints in a store are averaged as those of this machine are: the very same bytes come out,
and no more than these are fetched."""

import json
import shutil
import signal
import subprocess
import sys
import time

import composites
import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.distributed.checkpoint as dcp
from bundles import write as write_bundle
from checkpoints import state
from command_line import SWAVG, done, process, swavg
from framework_files import FRAMEWORKS
from make import arrays, sharded
from object_stores import KEYS, environment
from zero_folders import zero_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def safetensors_file(path, i):
    arrays(path.with_suffix(".safetensors"), i)


def shards(path, i):
    made = [
        {f"{part}{n}": np.full((3, 5), i + n, np.float32) for n in range(4)} for part in ("a", "b")
    ]
    names = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    sharded(path, dict(zip(names, made, strict=True)), config__json="{}", vocab__txt="words")


def torch_file(path, i):
    optimizer = {"state": {0: {"exp_avg": torch.ones(40, 40)}}}
    torch.save({"model": state(i), "optimizer": optimizer, "step": i}, path.with_suffix(".pt"))


def transposed(path, i):
    tensors = state(i)
    if i == 2:
        tensors["head.weight"] = tensors["head.weight"].t().contiguous().t()
    torch.save(tensors, path.with_suffix(".pt"))


def legacy(path, i):
    torch.save(state(i), path.with_suffix(".pth"), _use_new_zipfile_serialization=False)


def pickled(path, i):
    content = {"model": state(i), "extra": {"mean": np.arange(40.0) + i}}
    torch.save(content, path.with_suffix(".pt"))


def npz(path, i):
    np.savez(path.with_suffix(".npz"), w=np.full((30, 40), i, np.float32), b=np.zeros(3))


def deflated(path, i):
    np.savez_compressed(path.with_suffix(".npz"), w=np.full((30, 40), i, np.float32))


def hdf5(path, i):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("layer/w", data=np.full((30, 40), i, np.float32))
        file.create_dataset("layer/c", data=np.full((30, 40), i, np.float32), chunks=(10, 10))


def bundle(path, i):
    write_bundle(path, {"w": np.full((30, 40), i, np.float32), "b": np.ones(3, np.float32)})


def distributed(path, i):
    dcp.save({"model": state(i)}, checkpoint_id=path, no_dist=True)


def zero(path, i):
    zero_folder(path, {"w": torch.full((3, 5), float(i)), "b": torch.ones(7)})


def of_parts(make):
    def write(path, i):
        composites.write(path, make(i))

    write.__name__ = make.__name__
    return write


def flax(path, i):
    files = sorted(file for file in (FRAMEWORKS / "flax" / "files").glob("*.msgpack"))
    shutil.copy(files[0], path.with_suffix(".msgpack"))


MADE = (
    safetensors_file, shards, torch_file, transposed, legacy, pickled, npz, deflated, hdf5, bundle,
    distributed, zero, flax, of_parts(composites.llama), of_parts(composites.pipeline),
    of_parts(composites.modules),
)  # fmt: skip


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_every_format_is_averaged_as_from_this_machine(make, bucket, tmp_path):
    local = tmp_path / "run"
    local.mkdir()
    for i in (1, 2):
        make(local / f"step-{i}", i)
    names = sorted(path.name for path in local.iterdir() if path.suffix != ".json")
    remote, output = bucket.put(local), "out" if (local / names[0]).is_dir() else "out.safetensors"
    found = []
    for folder, place in ((local, tmp_path / "here"), (remote, tmp_path / "there")):
        place.mkdir()
        paths = [f"{folder}/{name}" for name in names]
        done("average", *paths, "-o", place / output, "--lenient", "-w", 0.3, 0.7)
        done("inspect", paths[0])
        told = [done("list", folder, "--json").stdout, swavg("diff", *paths, "--json").stdout]
        found.append([text.replace(str(folder), "") for text in told])
    assert found[0] == found[1]
    done("diff", tmp_path / "here" / output, tmp_path / "there" / output)
    files = [
        {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
        for place in (tmp_path / "here", tmp_path / "there")
    ]
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        if path.suffix in (".json", ".txt", ".model") and "swavg" not in name:
            assert path.read_bytes() == files[1][name].read_bytes()


def big(folder, count=3):
    """Files of some hundred kB."""
    folder.mkdir()
    paths = []
    for i in range(count):
        tensors = {
            f"{n}.w": np.random.default_rng(10 * i + n).standard_normal((200, 150), np.float32)
            for n in range(12)
        }
        paths.append(folder / f"step-{i + 1}.safetensors")
        safetensors.numpy.save_file(tensors, paths[-1])
    return paths


def average_of(urls, output, *more, ok=0):
    found = swavg("average", *urls, "-o", output, "--force", *more)
    assert found.returncode == ok, found.stderr
    assert "a-very-secret-key" not in found.output
    return found


def test_each_byte_is_fetched_once_and_of_the_version_that_was_found(bucket, proxy, tmp_path):
    paths = big(tmp_path / "run")
    tensors = {f"{n}.w": torch.randn(200, 150) for n in range(12)}
    torch.save(tensors, tmp_path / "run" / "step-9.pt")
    bucket.put(tmp_path / "run")
    urls = [bucket.url(f"run/{path.name}") for path in [*paths, tmp_path / "run" / "step-9.pt"]]
    for some in (urls[:3], urls[3:]):
        before, sent = len(proxy.requests), proxy.sent
        average_of(some, tmp_path / "out.safetensors")
        size = sum((tmp_path / "run" / url.rpartition("/")[2]).stat().st_size for url in some)
        assert size <= proxy.sent - sent <= 1.05 * size
        gets = [kept for method, _, kept in proxy.requests[before:] if method == "GET"]
        assert all(kept["Range"] and kept["If-Match"] for kept in gets)
    done("average", *paths, "-o", tmp_path / "here.safetensors")
    average_of(urls[:3], tmp_path / "out.safetensors")
    done("diff", tmp_path / "here.safetensors", tmp_path / "out.safetensors")


def test_a_pattern_and_a_server_that_is_not_there_are_told_with_a_way_out(bucket, tmp_path):
    env = environment(bucket)
    for command, way in (("list", "the folder and --pattern '*.pt'"), ("inspect", "each object.")):
        found = swavg(command, bucket.url("run/*.pt"), cwd=tmp_path, env=env)
        assert found.returncode == 4
        assert "no such object" in found.stderr
        assert way in found.stderr
    found = swavg("inspect", "http://127.0.0.1:1/a.pt", cwd=tmp_path, env=env)
    assert found.returncode == 4
    assert "http://127.0.0.1:1/a.pt: cannot be reached" in found.stderr


def test_what_a_network_does_to_answers_is_healed(bucket, proxy, tmp_path):
    paths = big(tmp_path / "run")
    urls = [bucket.put(path, f"run/{path.name}") for path in paths]
    cut = {5: ("cut", 1000), 7: ("cut", 0), 11: ("cut", 9)}
    faults = {3: (503, b"slow down"), 9: (500, b""), **cut}
    proxy.fault = lambda method, path, number: faults.pop(number, None)
    average_of(urls, tmp_path / "out.safetensors")
    assert len(faults) < 3
    done("average", *paths, "-o", tmp_path / "here.safetensors")
    done("diff", tmp_path / "here.safetensors", tmp_path / "out.safetensors")


@pytest.mark.slow
def test_an_answer_that_stands_still_is_asked_for_again(bucket, proxy, tmp_path):
    paths = big(tmp_path / "run")
    urls = [bucket.put(path, f"run/{path.name}") for path in paths]
    proxy.fault = lambda method, path, number: ("stall", 100) if number in (3, 8) else None
    average_of(urls, tmp_path / "out.safetensors")
    done("average", *paths, "-o", tmp_path / "here.safetensors")
    done("diff", tmp_path / "here.safetensors", tmp_path / "out.safetensors")


def test_a_refusal_in_the_middle_is_told_and_leaves_the_old_output(bucket, proxy, tmp_path):
    urls = [bucket.put(path, f"run/{path.name}") for path in big(tmp_path / "run")]
    expired = 403, b"<Error><Code>ExpiredToken</Code></Error>"
    proxy.fault = lambda method, path, number: expired if number > 8 else None
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"old")
    found = average_of(urls, output, ok=4)
    assert "access was denied" in found.stderr
    assert bucket.url("run/step-") in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "run"]
    assert output.read_bytes() == b"old"


def test_a_folder_that_may_not_be_listed_is_not_said_to_be_missing(bucket, proxy, tmp_path):
    shards(tmp_path / "1", 1)
    url = bucket.put(tmp_path / "1")
    refusal = b"<Error><Code>AccessDenied</Code></Error>"
    proxy.fault = lambda method, path, number: (403, refusal) if "list-type" in path else None
    env = environment(bucket, proxy)
    for command in (["average", f"{url}/", url, "-o", tmp_path / "o"], ["list", bucket.url("")]):
        found = process(*command, env=env)
        assert (found.returncode, "access was denied" in found.stderr) == (4, True)
        assert "docs/scale.md says where" in found.stderr


def test_an_object_that_is_replaced_meanwhile_is_told(bucket, proxy, tmp_path):
    paths = big(tmp_path / "run")
    urls = [bucket.put(path, f"run/{path.name}") for path in paths]

    def replaced(method, path, number):
        if number == 7:
            bucket.put(paths[0], "run/step-3.safetensors")

    proxy.fault = replaced
    found = average_of(urls, tmp_path / "out.safetensors", ok=4)
    assert "step-3.safetensors: changed while it was read" in found.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.alone
@pytest.mark.parametrize("at", [1, 8], ids=["while it is opened", "while it is averaged"])
def test_an_interrupt_does_not_wait_for_a_server_that_stands_still(at, bucket, proxy, tmp_path):
    urls = [bucket.put(path, f"run/{path.name}") for path in big(tmp_path / "run")]
    proxy.fault = lambda method, path, number: ("stall", 10) if number >= at else None
    process = subprocess.Popen(
        [*SWAVG, "average", *urls, "-o", "out.safetensors"],
        cwd=tmp_path,
        env=environment(bucket, proxy),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while len(proxy.requests) <= at:
        time.sleep(0.05)
    time.sleep(0.5)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert time.monotonic() - begun < 2
    assert process.returncode == 130, told
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8])
def test_memory_is_bounded_whatever_the_size_and_number_of_inputs(count, bucket, tmp_path):
    tensors = {f"{n}.w": np.ones((1000, 1000), np.float32) for n in range(6)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    urls = [bucket.put(tmp_path / "a.safetensors", f"{i}.safetensors") for i in range(count)]
    # This process is large, and a child's peak begins with its parent's.
    small = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [*SWAVG, "average", *urls, "-o", str(tmp_path / "out.safetensors")]
    found = subprocess.run(
        [sys.executable, "-c", small, *command],
        env=environment(bucket),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout.split()[-1]) < 200 << 10


def test_snapshots_are_chosen_from_a_folder_and_side_files_go_along(bucket, tmp_path):
    for i in range(1, 6):
        shards(tmp_path / "run" / f"checkpoint-{i}0", i)
    url = bucket.put(tmp_path / "run")
    told = json.loads(done("list", url, "--json").stdout)
    assert [each["step"] for each in told["checkpoints"]] == [10, 20, 30, 40, 50]
    done("average", url, "--last", 2, "-o", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "run" / "checkpoint-10").iterdir())
    found = safetensors.numpy.load_file(tmp_path / "out" / "model-00001-of-00002.safetensors")
    assert found["a0"].tolist() == np.full((3, 5), 4.5).tolist()
    done("ema", url, "--decay", 0.5, "-o", tmp_path / "ema")
    done("ema", tmp_path / "run", "--decay", 0.5, "-o", tmp_path / "here")
    done("diff", tmp_path / "ema", tmp_path / "here")
    done("convert", f"{url}/checkpoint-20", tmp_path / "converted.npz")
    done("diff", tmp_path / "run" / "checkpoint-20", tmp_path / "converted.npz")


def test_without_credentials_it_ends_before_a_request(bucket, proxy, tmp_path, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = swavg("average", bucket.url("a.pt"), bucket.url("b.pt"), "-o", tmp_path / "out.pt")
    assert found.returncode == 2
    assert "AWS_SKIP_SIGNATURE=true" in found.stderr
    assert proxy.requests == []


def test_what_is_not_there_and_what_is_not_read_from_a_store_is_told(bucket, tmp_path):
    (tmp_path / "step-1" / "default").mkdir(parents=True)
    (tmp_path / "step-1" / "default" / "_METADATA").write_text("{}")
    orbax = bucket.put(tmp_path / "step-1")
    for url, problem in (
        (bucket.url("none.pt"), "no such object"),
        ("s3://no-such-bucket/a.pt", "no such bucket"),
        (orbax, "aws s3 cp --recursive"),
        ("s3:/bucket/a.pt", "pathlib makes one slash of two"),
        ("ftp://host/a.pt", "begins with one of s3://"),
    ):
        found = swavg("average", url, url, "-o", tmp_path / "out.pt")
        assert found.returncode == 4, url
        assert problem in found.stderr
