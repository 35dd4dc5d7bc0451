"""Outputs in object stores: whole or not there, never over another without --force."""

import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from bundles import write as write_bundle
from checkpoints import save, series
from command_line import SWAVG, process
from composites import w
from composites import write as write_parts
from object_stores import KEYS

PART = 8 << 20


@pytest.fixture
def small(tmp_path):
    return series(tmp_path)


@pytest.fixture
def large(tmp_path):
    """Two files of three parts, none of whose blocks are equal."""
    return [
        save(tmp_path / f"{name}.safetensors",
             {f"layer.{n}": torch.arange(1 << 20) * (n + 1.0) + more for n in range(5)})
        for name, more in (("a", 0.0), ("b", 2.0))
    ]  # fmt: skip


def fault(proxy, method, match, what, times=1):
    """Let it do so to the first such requests."""
    left = [what] * times

    def fitting(own, path, _):
        return left.pop() if left and own == method and re.search(match, path) else None

    proxy.fault = fitting


def average(*args):
    return process("average", *args)


def test_a_small_object_is_one_request_that_replaces_nothing(bucket, proxy, small, tmp_path):
    found = average(*small, "-o", bucket.url("run/avg.safetensors"))
    assert found.returncode == 0, found.stderr
    assert found.stdout == bucket.url("run/avg.safetensors\n")
    average(*small, "-o", tmp_path / "avg.safetensors")
    assert bucket.get("run/avg.safetensors") == (tmp_path / "avg.safetensors").read_bytes()
    assert [method for method, _, _ in proxy.requests][:4] == ["HEAD", "GET", "PUT", "HEAD"]


def test_an_object_of_three_parts_has_the_bytes_of_a_file(bucket, proxy, large, tmp_path):
    """What is handed to the store is not written into again."""
    found = average(*large, "-o", bucket.url("avg.safetensors"), "--threads", "4")
    assert found.returncode == 0, found.stderr
    average(*large, "-o", tmp_path / "avg.safetensors")
    assert bucket.get("avg.safetensors") == (tmp_path / "avg.safetensors").read_bytes()
    parts = {path for method, path, _ in proxy.requests if method == "PUT" and "partNumber" in path}
    assert len(parts) == 3
    assert bucket.unfinished() == []


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_exists_is_replaced_with_force_only(bucket, proxy, request, size):
    inputs = request.getfixturevalue(size)
    bucket.client.put_object(Bucket=bucket.name, Key="avg.safetensors", Body=b"old")
    found = average(*inputs, "-o", bucket.url("avg.safetensors"))
    assert found.returncode == 7
    assert "exists already\n" in found.stderr
    assert "Use --force" in found.stderr
    assert bucket.get("avg.safetensors") == b"old"
    assert average(*inputs, "-o", bucket.url("avg.safetensors"), "--force").returncode == 0
    assert bucket.get("avg.safetensors") != b"old"


@pytest.mark.parametrize(
    ("size", "method", "match"), [("small", "PUT", "avg"), ("large", "POST", "uploads")]
)
def test_what_someone_else_puts_there_meanwhile_stays(bucket, proxy, request, size, method, match):
    inputs = request.getfixturevalue(size)
    client, place = bucket.client, {"Bucket": bucket.name, "Key": "avg.safetensors"}
    fault(proxy, method, match, lambda: client.put_object(**place, Body=b"theirs") and None)
    found = average(*inputs, "-o", bucket.url("avg.safetensors"))
    assert found.returncode == 7, found.stderr
    assert bucket.get("avg.safetensors") == b"theirs"
    assert bucket.unfinished() == []


@pytest.mark.parametrize(
    ("method", "match"),
    [
        ("POST", "uploads"),
        ("PUT", "partNumber=1&"),
        ("PUT", "partNumber=3&"),
        ("POST", "uploadId"),
    ],
)
def test_after_a_refusal_nothing_is_left(bucket, proxy, large, method, match):
    fault(proxy, method, match, (403, b""))
    found = average(*large, "-o", bucket.url("avg.safetensors"))
    assert found.returncode == 5
    assert "access was denied" in found.stderr
    assert "uploadId" not in found.stderr
    assert bucket.names() == bucket.unfinished() == []


@pytest.mark.parametrize("match", ["partNumber=2&", "uploadId"])
def test_a_server_that_recovers_is_asked_again(bucket, proxy, large, match):
    method = "POST" if match == "uploadId" else "PUT"
    fault(proxy, method, match, (500, b""), times=2)
    found = average(*large, "-o", bucket.url("avg.safetensors"))
    assert found.returncode == 0, found.stderr
    assert bucket.names() == ["avg.safetensors"]


def test_an_average_that_is_refused_does_not_appear(bucket, proxy, large, tmp_path):
    """All of it was sent but the last request."""
    values = torch.arange(1 << 20).float()
    values[-1] = torch.nan
    bad = save(tmp_path / "bad.safetensors", {f"layer.{n}": values for n in range(5)})
    found = average(large[0], bad, "-o", bucket.url("avg.safetensors"))
    assert found.returncode == 6
    assert bucket.names() == bucket.unfinished() == []


def begun(proxy, *args, stall=30):
    """A command in whose upload the second part takes its time."""
    fault(proxy, "PUT", "partNumber=2&", lambda: time.sleep(stall))
    command = subprocess.Popen(
        [*SWAVG, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not any(
        method == "PUT" and "partNumber=2&" in path for method, path, _ in proxy.requests
    ):
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
    return command


@pytest.mark.alone
@pytest.mark.parametrize("stall", [0.8, 30])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_it_within_two_seconds(bucket, proxy, large, number, code, stall):
    command = begun(proxy, "average", *large, "-o", bucket.url("avg.safetensors"), stall=stall)
    before = time.monotonic()
    command.send_signal(number)
    _, said = command.communicate(timeout=20)
    assert time.monotonic() - before < 2
    assert command.returncode == code, said
    assert bucket.names() == []
    if stall < 1:
        # What a request that does not end has begun is left to the rules of the bucket.
        assert bucket.unfinished() == []


def test_after_a_kill_no_object_appears(bucket, proxy, large):
    command = begun(proxy, "average", *large, "-o", bucket.url("avg.safetensors"))
    command.kill()
    command.communicate(timeout=20)
    assert bucket.names() == []


def test_the_index_of_shards_comes_last(bucket, proxy, large, tmp_path):
    found = average(*large, "-o", bucket.url("avg/"), "--max-shard-size", "9MB", "--card")
    assert found.returncode == 0, found.stderr
    assert found.stdout == bucket.url("avg\n")
    average(*large, "-o", tmp_path / "avg/", "--max-shard-size", "9MB", "--card")
    files = {path.name: path.read_bytes() for path in (tmp_path / "avg").iterdir()}
    assert {key.removeprefix("avg/"): bucket.get(key) for key in bucket.names()} == files
    assert len(files) == 5
    sent = [path for method, path, _ in proxy.requests if method in ("POST", "PUT")]
    assert sent[-1].endswith("/avg/model.safetensors.index.json")


def test_many_workers_send_many_shards(bucket, tmp_path):
    """Some of which hold nothing, or are smaller than a task."""
    sizes = [0, 1, 40, 3000, 70, 0, 5] * 6 + [0]
    inputs = [
        save(tmp_path / f"{seed}.safetensors",
             {f"layer.{n}": torch.full((size,), n + seed) for n, size in enumerate(sizes)})
        for seed in (0.0, 1.0)
    ]  # fmt: skip
    args = (*inputs, "--max-shard-size", "100", "--threads", "8", "-o")
    found = average(*args, bucket.url("avg/"))
    assert found.returncode == 0, found.stderr
    average(*args, tmp_path / "avg/")
    files = {path.name: path.read_bytes() for path in (tmp_path / "avg").iterdir()}
    assert {key.removeprefix("avg/"): bucket.get(key) for key in bucket.names()} == files
    assert len(files) > 20


def test_shards_that_are_not_all_sent_are_taken_back(bucket, proxy, large):
    fault(proxy, "PUT", "index.json", (403, b""))
    found = average(*large, "-o", bucket.url("avg/"), "--max-shard-size", "9MB")
    assert found.returncode == 5
    assert bucket.names() == bucket.unfinished() == []


def test_an_old_index_goes_before_its_shards_are_replaced(bucket, proxy, large):
    """Nobody may read some of the old and some of the new."""
    args = (*large, "-o", bucket.url("avg"), "--max-shard-size", "9MB")
    assert average(*args).returncode == 0
    assert average(*args).returncode == 7
    assert average(*args, "--force").returncode == 0
    assert len(bucket.names()) == 4
    fault(proxy, "POST", "00002-of-00003.*uploads", (403, b""))
    assert average(*args, "--force").returncode == 5
    assert "avg/model.safetensors.index.json" not in bucket.names()


def test_what_another_checkpoint_has_is_not_mixed_with_the_new_one(bucket, proxy, large):
    bucket.client.put_object(Bucket=bucket.name, Key="avg/model.safetensors", Body=b"old weights")
    args = (*large, "-o", bucket.url("avg"), "--max-shard-size", "9MB")
    assert average(*args).returncode == 7
    found = average(*args, "--force")
    assert found.returncode == 5
    assert "holds what the new checkpoint does not: model.safetensors" in found.stderr


@pytest.mark.parametrize("format", ["pt", "npz"])
def test_other_formats_are_streamed_too(bucket, proxy, small, tmp_path, format):
    found = average(*small, "-o", bucket.url(f"avg.{format}"))
    assert found.returncode == 0, found.stderr
    average(*small, "-o", tmp_path / f"avg.{format}")
    assert bucket.get(f"avg.{format}") == (tmp_path / f"avg.{format}").read_bytes()


def dcp(folder):
    return [*series(folder), "--format", "dcp"], ".metadata"


def tensorflow(folder):
    folder.mkdir()
    for name, value in (("a", 1), ("b", 2)):
        write_bundle(folder / name, {"w": np.full(3, value, np.float32)})
    return [folder / "a", folder / "b"], ".index"


def composite(folder):
    files = {"actor/model.pt": w(1), "critic.safetensors": w(2)["w"], "config.json": {}}
    files["critic.safetensors"] = {"w": files["critic.safetensors"]}
    return [write_parts(folder / name, files) for name in ("a", "b")], "config.json"


@pytest.mark.parametrize("make", [dcp, tensorflow, composite])
def test_what_is_not_made_in_order_is_sent_when_it_is_finished(
    bucket, proxy, tmp_path, monkeypatch, make
):
    inputs, last = make(tmp_path / "in")
    (tmp_path / "room").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))
    found = average(*inputs, "-o", bucket.url("avg"))
    assert found.returncode == 0, found.stderr
    assert average(*inputs, "-o", tmp_path / "avg").returncode == 0
    files = {
        path.relative_to(tmp_path / "avg").as_posix(): path.read_bytes()
        for path in (tmp_path / "avg").rglob("*")
        if path.is_file()
    }
    assert {key.removeprefix("avg/"): bucket.get(key) for key in bucket.names()} == files
    assert [path for method, path, _ in proxy.requests if method == "PUT"][-1].endswith(last)
    assert list((tmp_path / "room").iterdir()) == []


def test_a_sweep_sends_each_output(bucket, proxy, small, tmp_path):
    args = (*small, "-r", "uniform:last=2", "-r", "ema:decay=0.9", "-d")
    found = process("sweep", *args, bucket.url("sweep"))
    assert found.returncode == 0, found.stderr
    names = ["uniform-last-2.safetensors", "ema-decay-0.9.safetensors"]
    assert found.stdout.split() == [bucket.url(f"sweep/{name}") for name in names]
    process("sweep", *args, tmp_path / "sweep")
    for name in names:
        assert bucket.get(f"sweep/{name}") == (tmp_path / "sweep" / name).read_bytes()
    again = process("sweep", *args, bucket.url("sweep"))
    assert again.returncode == 7


def test_no_secret_is_told(bucket, proxy, small):
    fault(proxy, "PUT", "avg", (403, b""), times=9)
    found = average(*small, "-o", bucket.url("avg.safetensors"), "-v")
    assert found.returncode == 5
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in found.stderr
    proxy.fault = lambda *_: None
    done = average(*small, "-o", bucket.url("avg.safetensors"), "--json")
    assert json.loads(done.stdout)["output"] == bucket.url("avg.safetensors")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    assert KEYS["AWS_SECRET_ACCESS_KEY"].encode() not in bucket.get("avg.safetensors")


def test_missing_credentials_are_told_before_anything_is_sent(bucket, proxy, small, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    found = average(*small, "-o", bucket.url("avg.safetensors"))
    assert found.returncode == 2
    assert "credentials" in found.stderr
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://host/avg.safetensors", "nothing is written to https://"),
        ("hf://org/name/avg.safetensors", "hf upload org/name FOLDER"),
        ("ftp://host/avg.safetensors", "nothing is written to ftp://"),
        ("s3:/bucket/avg.safetensors", "two slashes"),
        ("s3://bucket-that-is-not-there", "names no object"),
        ("s3://bucket-that-is-not-there/avg.safetensors", "no such bucket"),
    ],
)
def test_other_urls_are_refused_and_never_become_folders(bucket, proxy, small, tmp_path, url, says):
    found = process("average", *small, "-o", url, cwd=tmp_path)
    assert found.returncode == 5
    assert says in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-100.safetensors", "step-200.safetensors", "step-300.safetensors"
    ]  # fmt: skip


def test_an_input_is_never_written_over(bucket, proxy, small):
    inputs = [bucket.put(path, f"run/{number}.safetensors") for number, path in enumerate(small)]
    for output, says in (
        (bucket.url("run/0.safetensors"), "is an input"),
        (bucket.url("run/"), "holds the input"),
    ):
        found = average(*inputs, "-o", output, "--force")
        assert found.returncode == 5, found.stderr
        assert says in found.stderr
    found = average(*inputs, "-o", bucket.url("run/avg.safetensors"))
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("way", [("--part", "1/2"), ("--continue",), ("--finish",)])
def test_parts_need_a_folder_of_the_machine(bucket, proxy, small, way):
    found = average(*small, "-o", bucket.url("avg.safetensors"), *way)
    assert found.returncode == 2
    assert "Give a path there, and upload the result." in found.stderr
    assert proxy.requests == []


def test_a_dry_run_sends_nothing_and_counts_what_sending_holds(bucket, proxy, large):
    found = average(*large, "-o", bucket.url("avg.safetensors"), "-n", "--json")
    local = average(*large, "-o", "avg.safetensors", "-n", "--json")
    held = json.loads(found.stdout)["memory"] - json.loads(local.stdout)["memory"]
    assert 2 * PART < held <= 6 * PART + (1 << 20)
    assert {method for method, _, _ in proxy.requests} == {"HEAD", "GET"}


@pytest.mark.parametrize("more", [[], ["--force"]])
def test_an_object_does_not_hide_the_folder_of_its_name(bucket, proxy, small, more):
    bucket.put(small[0], "run/step-1.safetensors")
    bucket.put(small[0], "runs.safetensors")
    found = average(*small, "-o", bucket.url("run"), *more)
    assert (found.returncode, "is a folder" in found.stderr) == (5, True), found.stderr
    assert bucket.names() == ["run/step-1.safetensors", "runs.safetensors"]
    assert average(*small, "-o", bucket.url("runs")).returncode == 0


def test_a_local_input_that_changed_where_nobody_looks_is_newer_than_the_object(
    bucket, proxy, large
):
    """Its fingerprint is of some places only."""
    call = (*large, "-o", bucket.url("avg.safetensors"), "--if-stale")
    assert average(*call).returncode == 0
    assert "up to date" in average(*call).stderr
    with open(large[0], "r+b") as file:
        file.seek(-6000, os.SEEK_END)
        file.write(bytes(8))
    later = time.time_ns() + 5 * 10**9
    os.utime(large[0], ns=(later, later))
    assert "up to date" not in average(*call).stderr
