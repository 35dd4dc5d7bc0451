"""Cases of what is refused: messages, ways out and exit codes, and that nothing is written."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

from golden import build
from golden.build import net, of
from golden.running import Case, Source

EXISTS = "an output that exists will exit with 7"


def calls() -> list[Case]:
    pair: dict[str, Source] = {
        "a": partial(net, "a"), "b": partial(net, "b"), "out/keep.txt": "mine", "file": "text",
        "c.safetensors": "mine", "folder/model.safetensors": partial(net, "c"),
        "sub/a": partial(net, "d"),
    }  # fmt: skip
    tables = {
        "weights": (
            "a b -w 0.5", "a b -w 0.5 0.6", "a b -w", "a b -w nan 1", "a b -w x", "a b -w 1 -1",
            "a b -w 1 -1 --normalize", "a b -w 0.5 0.6 --normalize -o 1.safetensors",
            "a b -w 0.5,0.5 -o 2.safetensors", "a b -w 0.25, 0.75 -o 3.safetensors",
            "a b -w=.25,7.5e-1 -o 4.safetensors", "a b -w.5 .5 -o 5.safetensors",
            "-w 0.5 0.5 a b -o 6.safetensors", "a -w .25 .75 -o 7.safetensors -- b",
            "a b -w 0.5 -w 0.5 -o 8.safetensors", "a b -w -0", "a b -w 1e400 1",
            "a b -w 0 1 -o 9.safetensors", "a b -w 2 2 --raw-weights -o 10.safetensors",
            "a b -w 1 2 3", "a b -w -0.5 1.5 -o 11.safetensors", "a -w 1 -o 12.safetensors",
        ),
        "options": (
            "", "a b --memory lots", "a b --memory 1", "a b --memory 64KiB -o m.safetensors",
            "a b --threads 0", "a b --threads 64 -o t.safetensors",
            "a b --dtype int8", "a b --missing drop", "a b --integers sum", "a b --include zzz*",
            "a b --frobnicate", "a b --max-shard-size 0", "a b --max-shard-size x",
            "a b --max-shard-size 1GB -o x.safetensors", "a b --max-shard-size 1GB -o -",
            "a b -o - --json", "a b --accumulate float16", "a b --every 2", "a b --last 3",
            "a b --best 1", "a b --key x -o k.safetensors",
        ),
        "inputs": (
            "a missing", "missing", "a folder/gone", "a file", "a out", "a .", "a ''",
            "a /dev/null",             "a a -o same.safetensors", "a ./a -o same2.safetensors",
            "a sub/a -o two.safetensors -v",
            "a folder -o mixed.safetensors", "a folder -o mixed",
        ),
        "outputs": (
            "a b -o none/c.safetensors", "a b -o b", "a b -o b --force", "a b -o ./b --force",
            "a b -o c.safetensors", "a b -o c.safetensors -n", "a b -o c.safetensors --force",
            "a b -o file/x", "a b -o out -q", "a b -o out", "a b -o out --force",
            "a folder -o folder", "a folder -o folder --force", "a b -o folder/x.safetensors",
            "a b -o folder -q", "a b -o new/", "a b -o new.safetensors/",
            "a b -o ''", "a b -o out/keep.txt", "a b -o d.pt", "a b -o d.pt", "a b -o e.npz",
            "a b", "a b", "a b --max-shard-size 50 -o out",
            "a b --max-shard-size 50 -o out --force",
            "a b --max-shard-size 50 -o file", "a b --max-shard-size 50 -o shards",
            "a b --max-shard-size 50 -o shards --force",
        ),
    }  # fmt: skip
    cases = []
    for name, table in tables.items():
        lines = [f"average {more}" for more in table]
        cases.append(Case("mistakes", name, pair, lines, intended=EXISTS * (name == "outputs")))
    lines = ["frobnicate", "", "average --frob", "ema", "ema a", "update", "window a", "posthoc a",
             "sweep a", "list", "diff a", "bn a", "ema missing --decay 0.9", "list missing",
             "average a b -v -w 1"]  # fmt: skip
    cases.append(Case("mistakes", "commands", pair, lines))
    return cases


def broken() -> list[Case]:
    good = net("a")
    size = struct.unpack("<Q", good[:8])[0]

    def header(text: bytes, data: bytes = b"") -> bytes:
        return struct.pack("<Q", len(text)) + text + data

    entry = b'"dtype":"F32","shape":[1],"data_offsets":[0,4]'
    files: dict[str, bytes] = {
        "empty": b"", "short": good[:5], "cut-header": good[: size - 3], "cut-data": good[:-1],
        "longer": good + b"x", "html": b"<!DOCTYPE html><html>", "zeros": bytes(64),
        "json": b"{}", "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "huge-header": struct.pack("<Q", 1 << 60) + b"{", "no-json": header(b"{nonsense}"),
        "list": header(b"[]"), "no-dtype": header(b'{"w":{"shape":[1],"data_offsets":[0,4]}}'),
        "unknown-dtype": header(b'{"w":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "negative": header(b'{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
        "span": header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', bytes(4)),
        "overlap": header(b'{"w":{' + entry + b'},"x":{' + entry + b"}}", bytes(4)),
        "twice": header(b'{"w":{' + entry + b'},"w":{' + entry + b"}}", bytes(4)),
        "metadata": header(b'{"__metadata__":{"a":1},"w":{' + entry + b"}}", bytes(4)),
        "text": b"hello world, this is no checkpoint\n" * 3,
    }  # fmt: skip
    cases = []
    for name, content in files.items():
        inputs: dict[str, Source] = {"good.safetensors": good, "bad.safetensors": content,
                                     "bad": content}  # fmt: skip
        lines = [
            "average good.safetensors bad.safetensors -o out.safetensors",
            "average bad good.safetensors -o out.safetensors",
            "inspect bad.safetensors",
        ]
        cases.append(Case("broken", name, inputs, lines))
    return cases


def mismatches() -> list[Case]:
    shapes = {f"layers.{i}.weight": ("F32", (i + 1,), bytes(4 * i + 4)) for i in range(30)}
    turned = {n: (c, (1, *s), d) for n, (c, s, d) in shapes.items()}
    other = {f"other.{i}": ("F32", (1,), bytes(4)) for i in range(30)}
    inputs: dict[str, Source] = {
        "a": build.file(shapes), "b": build.file(turned), "c": build.file(other),
        "d": build.file(dict(list(shapes.items())[:25])), "e": build.file(shapes),
        "f": of(w=("F32", [1.0])), "g": of(w=("I32", [1])), "h": of(w=("BF16", [1.0])),
        "x.pt": Path("torch/flat/a.pt"),
    }  # fmt: skip
    lines = []
    for paths in (
        "a b",
        "a c",
        "a d",
        "a d e d",
        "d a",
        "f g",
        "f h",
        "f h g",
        "a x.pt",
        "f a c d",
    ):
        lines += [f"average {paths} -o out.safetensors", f"average {paths} -v -o out.safetensors"]
        lines.append(f"average {paths} --lenient -n")
    lines += ["ema a b --decay 0.9 -o out.safetensors", "diff a b", "diff a b --all"]
    return [Case("mistakes", "mismatches", inputs, lines)]


CASES = [*calls(), *broken(), *mismatches()]
