"""Cases of tensors: which are averaged, ties, formats and folders."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from golden import build
from golden.arithmetic import named, names
from golden.build import net, of
from golden.running import INPUTS, Case, Source


def policies() -> list[Case]:
    w = ("F32", [1.0, 2.0])
    contents: dict[str, dict[str, Source]] = {
        "alike": named(a=partial(net, "a"), b=partial(net, "b"), c=partial(net, "c")),
        "missing": named(
            a=partial(net, "a", plus="more"), b=partial(net, "b"), c=partial(net, "c", plus="more")
        ),
        "missing-last": named(a=partial(net, "a", plus="more"), b=partial(net, "b")),
        "shape": named(
            a=of(w=w, x=("F32", [[1.0, 2.0]])), b=of(w=w, x=("F32", [1.0])), c=of(w=w, x=w)
        ),
        "shape-of-one": named(
            a=of(w=w, x=w), b=of(w=w, x=("F32", [5.0])), c=of(w=w, x=("F32", [3.0, 4.0]))
        ),
        "float-dtypes": named(
            a=of(w=w, x=("F32", [1.0, 1.1])), b=of(w=w, x=("BF16", [2.0, 3.0])),
            c=of(w=w, x=("F16", [3.0, 1.7])),
        ),
        "kinds": named(
            a=of(w=w, x=("I32", [1, 2])), b=of(w=w, x=w), c=of(w=w, x=("I64", [3, 4]))
        ),
        "integers-differ": named(a=of(w=w, x=("I32", [1, 2])), b=of(w=w, x=("I64", [3, 4]))),
        "nothing-common": named(a=of(x=w), b=of(y=w)),
        "prefixes": named(
            a=partial(net, "a"), b=partial(net, "b", prefix="module."),
            c=partial(net, "c", prefix="_orig_mod."),
        ),
        "prefixes-collide": named(
            a=of(w=w, module__w=("F32", [3.0, 5.0])), b=of(w=w, module__w=("F32", [7.0, 9.0]))
        ),
    }  # fmt: skip
    cases = []
    for name, files in contents.items():
        n = names(len(files))
        lines = [f"average {n} -o strict.safetensors"]
        for missing in ("keep", "drop", "average"):
            lenient = f"average {n} --lenient --missing {missing}"
            lines += [
                f"{lenient} -o {missing}.safetensors",
                f"{lenient} --dtype bfloat16 -q --json -o {missing}-bf16.safetensors",
            ]
        weights = "-w 0.5 0.3 0.2" if len(files) == 3 else "-w 0.7 0.3"
        lines += [
            f"average {n} --lenient {weights} --missing average -v -o weighted.safetensors",
            f"average {n} --lenient --dry-run",
        ]
        cases.append(Case("policy", name, files, lines))
    n, files = names(3), contents["alike"]
    lines = []
    for index, options in enumerate((
        "--include 'body.*'", "--exclude 'head.*'", "--include '*.weight' --exclude head.weight",
        "--exclude '*.bias' --drop-excluded", "--include head.weight --drop-excluded",
        "--include zzz", "--exclude '*'", "--exclude '*' --drop-excluded", "--include 'STEPS'",
        "--exclude steps", "--exclude 'head.*' --dtype float16",
    )):  # fmt: skip
        lines.append(f"average {n} {options} -o {index}.safetensors")
    lines.append(f"average {n} --exclude 'head.*' --dry-run --json")
    cases.append(Case("policy", "globs", files, lines))
    lines = ["average a.safetensors b.safetensors --include 'body.*' -o out.safetensors",
             "average b.safetensors a.safetensors --include 'module.body.*' -o o.safetensors",
             "average b.safetensors --exclude 'head.*' -o one.safetensors"]  # fmt: skip
    cases.append(Case("policy", "globs-prefixes", contents["prefixes"], lines))
    return cases


def order_and_metadata() -> list[Case]:
    odd = {"z": ("I64", (1,), bytes(8)), "ä": ("F16", (2,), bytes(4)),
           "a b": ("F64", (1,), bytes(8)),
           "A": ("BF16", (1,), bytes(2)), "\n": ("BOOL", (1,), b"\1"),
           "[red]x\x1b[31m": ("F32", (1,), bytes(4))}  # fmt: skip
    meta = {"format": "pt", "epoch": "3", "swavg": "{}", "metrics": '{"val_loss": 1}', "é": "ü"}
    lines = ["average a.safetensors b.safetensors -o c.safetensors -v",
             "average a.safetensors b.safetensors -n", "inspect a.safetensors",
             "inspect c.safetensors --json", "diff a.safetensors c.safetensors"]  # fmt: skip
    one = build.file(odd, meta)
    cases = [Case("tensors", "names", named(a=one, b=one), lines)]
    empty = {"e": ("F32", (0, 3), b""), "s": ("F32", (), bytes(4)), "i": ("I64", (), bytes(8)),
             "o": ("F16", (1, 1, 1), bytes(2)), "n": ("BOOL", (0,), b"")}  # fmt: skip
    twice = named(a=build.file(empty), b=build.file(empty))
    cases.append(Case("tensors", "empty-and-scalar", twice, lines))
    only = named(a=build.file({"e": ("F32", (0,), b"")}), b=build.file({"e": ("F32", (0,), b"")}))
    cases.append(Case("tensors", "only-empty", only, lines))
    odd_names: dict[str, Source] = dict.fromkeys(
        ("ckpt-1.5", "x.SAFETENSORS", "x.tar.st", ".hidden", "noext"), partial(net, "a")
    )
    lines = [f"average {name} -n --json" for name in odd_names]
    intended = "the default name beside ckpt-1.5 will have no suffix"
    cases.append(Case("tensors", "default-names", odd_names, lines, intended=intended))
    lines = ["average a.safetensors b.safetensors"]
    none = named(a=build.file({}), b=build.file({}))
    cases.append(Case("tensors", "none", none, lines))
    return cases


def of_kind(kind: str, suffix: str = ".pt") -> dict[str, Source]:
    return {f"{seed}{suffix}": Path("torch", kind, f"{seed}.pt") for seed in "ab"}


KINDS = (
    "flat", "trainer", "lightning", "views", "dtypes", "nested", "ema", "prefixes", "parts", "keys",
    "list", "holder", "optimizer-beside", "gather", "tied", "untied", "module", "trainer-legacy",
    "views-legacy", "dtypes-legacy", "module-legacy", "protocol-2", "protocol-3", "protocol-4",
    "protocol-5", "old", "rezipped",
)  # fmt: skip


def unzipped(name: str) -> bytes:
    """A file out of ``large.zip``."""
    with zipfile.ZipFile(INPUTS / "large.zip") as archive:
        return archive.read(name)


def with_integers(line: str) -> str:
    """A command that takes the last of integers that differ and are no counters."""
    return line.replace("average", "average --integers last", 1)


def torch_files() -> list[Case]:
    cases = []
    for kind in KINDS:
        lines = [
            "average a.pt b.pt",
            "average a.pt b.pt -w 0.3 0.7 --json -q -o weighted.pt",
            "average b.pt a.pt --dtype bfloat16 -o bf16.pt -q",
            "average a.pt b.pt --dtype float32 -o f32.ckpt -q",
            "average a.pt b.pt --weights-only -o plain.pth",
            "average a.pt b.pt -o out.safetensors",
            "average a.pt b.pt --exclude '*w*' -o some.pt -v",
            "average a.pt out.safetensors -o back.pt",
            "average out.safetensors b.pt -o back2.pt -q",
            "average averaged.pt plain.pth -o again.pt",
            "average a.pt b.pt --include '*w*' --drop-excluded -o fewer.pt",
            "average a.pt b.pt --max-shard-size 100 -o shards -q",
            "average a.pt b.pt -o dry.pt -n",
            "inspect a.pt --tree",
            "inspect averaged.pt --json",
            "diff a.pt b.pt",
        ]
        if kind.startswith("dtypes"):
            lines = [with_integers(line) for line in lines]
        cases.append(Case("torch", kind, of_kind(kind), lines))
    lines = [
        "average a.pt b.pt --key state_dict_ema -o ema.pt",
        "average a.pt b.pt --key nothing",
        "average a.pt b.pt --key ''",
    ]
    cases.append(Case("torch", "key-ema", of_kind("ema"), lines))
    lines = [
        "average a.pt b.pt --key model.state_dict -o c.pt",
        "average a.pt b.pt --key model -o d.pt",
        "inspect a.pt --key model.state_dict",
        "diff a.pt b.pt --key model.state_dict --values",
    ]
    cases.append(Case("torch", "key-nested", of_kind("nested"), lines))
    lines = ["average a.pth.tar b.pth.tar", "average a.pth.tar b.pth.tar -o x.bin -q"]
    cases.append(Case("torch", "suffixes", of_kind("trainer", ".pth.tar"), lines))
    lines = [f"average a.pt {kind} -o {i}.pt" for i, kind in enumerate(("c.pt", "d.pt", "e.pt"))]
    lines += ["average c.pt d.pt e.pt -o mixed.pt --json -q", "average d.pt e.pt -o - -q"]
    mixed = {
        "a.pt": Path("torch/trainer/a.pt"), "c.pt": Path("torch/trainer-legacy/b.pt"),
        "d.pt": Path("torch/protocol-4/b.pt"), "e.pt": Path("torch/flat/b.pt"),
    }  # fmt: skip
    cases.append(Case("torch", "mixed", mixed, lines))
    lines = []
    for count in (1, 3, 7, 20):
        paths = " ".join("ab"[i % 2] + ".pt" for i in range(count))
        weights = " ".join(str((-1) ** i * (i + 1)) for i in range(count))
        lines += [
            f"average {paths} --integers last -o mean{count}.pt -q",
            f"average {paths} -w {weights} --normalize --allow-nonfinite --integers last"
            f" -o w{count}.pt -q",
        ]
    cases.append(Case("torch", "dtypes-many", of_kind("dtypes"), lines))
    big = {f"{n}.pt": partial(unzipped, f"{n}.pt") for n in ("a", "b", "plain", "legacy")}
    lines = [
        "average a.pt b.pt -o mean.pt",
        "average a.pt b.pt --threads 1 -o one.pt -q",
        "average a.pt b.pt -w 0.3 0.7 --threads 3 --memory 2MiB -o small.pt --json -q",
        "average a.pt plain.pt -o gathered.pt -q",
        "average plain.pt a.pt -o scattered.pt -q",
        "average a.pt legacy.pt -o legacy-out.pt -q",
        "average legacy.pt a.pt --dtype float32 -o wide.pt -q",
        "average a.pt b.pt plain.pt legacy.pt -o four.safetensors",
        "average a.pt four.safetensors -o back.pt -q",
        "average a.pt b.pt --exclude 'views.*' --max-shard-size 1MB -o shards",
    ]
    cases.append(Case("torch", "large", big, lines))
    refused = sorted(path.name for path in (INPUTS / "refused").iterdir())
    for name in refused:
        lines = [f"average {name} {name} -o out{Path(name).suffix}", f"inspect {name}"]
        cases.append(Case("refused", name, {name: Path("refused", name)}, lines))
    return cases


def ties() -> list[Case]:
    def pair(kind_a: str, kind_b: str) -> dict[str, Source]:
        return {"a.pt": Path("torch", kind_a, "a.pt"), "b.pt": Path("torch", kind_b, "b.pt")}

    def lines(a: str, b: str) -> list[str]:
        return [
            f"average {a} {b} -o out.pt",
            f"average {a} {b} -o out.safetensors --json -q",
            f"average {a} {b} --drop-ties -o dropped.safetensors",
            f"average {a} {b} --drop-ties -o dropped.pt -q",
            f"average {b} {a} -o turned.safetensors",
            f"average {a} {b} --include 'head.*' -o head.safetensors",
            f"average {a} {b} --exclude 'head.*' --drop-excluded -o body.safetensors",
            f"average {a} {b} --max-shard-size 30 -o shards",
            f"average {a} {b} --drop-ties --max-shard-size 30 -o dropped-shards",
            f"average {a} {b} -n",
        ]

    def plain(seed: str, *, head: bool = True, tied: bool = True, prefix: str = "") -> bytes:
        e = build.raw("F32", (3, 2), f"{seed} e")
        tensors = {"body": ("F32", (2,), build.raw("F32", (2,), f"{seed} b")),
                   "embed.weight": ("F32", (3, 2), e)}  # fmt: skip
        if head:
            tensors["head.weight"] = ("F32", (3, 2), e if tied else e[::-1])
        return build.file({prefix + name: tensor for name, tensor in tensors.items()})

    cases = [
        Case("ties", "both", pair("tied", "tied"), lines("a.pt", "b.pt")),
        Case("ties", "first", pair("tied", "untied"), lines("a.pt", "b.pt")),
        Case("ties", "last", pair("untied", "tied"), lines("a.pt", "b.pt")),
        Case("ties", "none", pair("untied", "untied"), lines("a.pt", "b.pt")),
    ]
    tied = {"a.pt": Path("torch/tied/a.pt")}
    for name, content in (
        ("safetensors-equal", plain("x")), ("safetensors-other", plain("x", tied=False)),
        ("safetensors-once", plain("x", head=False)),
    ):  # fmt: skip
        both = lines("a.pt", "b.safetensors")
        cases.append(Case("ties", name, {**tied, "b.safetensors": content}, both))
    prefixed = plain("a", prefix="module._orig_mod.")
    both = lines("a.pt", "b.safetensors")
    cases.append(Case("ties", "prefixed", {**tied, "b.safetensors": prefixed}, both))
    return cases


def folder(
    name: str, shards: Mapping[str, Mapping[str, str]], seed: str, **side: str
) -> dict[str, Source]:
    """A Hugging Face folder: tensors by shard, each with its dtype; side files, with ``__`` for
    the dot."""
    found: dict[str, Source] = {f"{name}/{k.replace('__', '.')}": text for k, text in side.items()}
    weight_map, total = {}, 0
    for shard, tensors in shards.items():
        held = {t: (code, (5, 3), build.raw(code, (5, 3), f"{seed} {t}")) for t, code in
                tensors.items()}  # fmt: skip
        weight_map |= dict.fromkeys(tensors, shard)
        total += sum(len(data) for _, _, data in held.values())
        found[f"{name}/{shard}"] = build.file(held, {"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total, "note": "kept"}, "weight_map": weight_map}
        found[f"{name}/model.safetensors.index.json"] = json.dumps(index)
    return found


def folders() -> list[Case]:
    two = {"model-00001-of-00002.safetensors": {"b.w": "F32", "a.w": "BF16"},
           "model-00002-of-00002.safetensors": {"c.w": "F16", "d.w": "F32"}}  # fmt: skip
    one = {"model.safetensors": {"a.w": "BF16", "b.w": "F32", "c.w": "F16", "d.w": "F32"}}
    side = {"config__json": '{"a": 1}\n', "tokenizer__json": "{}", "optimizer__pt": "x",
            "README__md": "Not the weights.\n"}  # fmt: skip
    pair = {**folder("a", two, "a", **side), **folder("b", two, "b", **side)}
    lines = [
        "average a b -o out", "average a b", "average a b -o out", "average a b -o out --force -q",
        "average a b -w 0.3 0.7 --json -q -o weighted", "average a b -o one.safetensors",
        "average a b -o one.pt", "average a b --max-shard-size 100 -o small",
        "average a b --max-shard-size 1GB -o single -q", "average a b --dtype bfloat16 -o bf16 -q",
        "average a b --exclude 'c.*' --drop-excluded -o fewer -v", "average a b -o - -q",
        "average a b -o dry -n", "average a b -o new/", "inspect a", "inspect out --json",
        "diff a b", "diff a out --values", "average a b -o a", "average a b -o a --force",
        "average a b -o a/x --force", "average a one.safetensors -o mixed",
    ]  # fmt: skip
    cases = [Case("folders", "sharded", pair, lines)]
    lines = ["average a b -o out", "average b a -o turned", "average a b --max-shard-size 90 -o s"]
    other = {**folder("a", two, "a", **side), **folder("b", one, "b", **side)}
    cases.append(Case("folders", "other-shards", other, lines))
    both = {**folder("a", one, "a", **side), **folder("b", one, "b", **side)}
    cases.append(Case("folders", "single", both, lines))
    stems = {"a/diffusion_pytorch_model.safetensors": partial(net, "a"),
             "b/diffusion_pytorch_model.safetensors": partial(net, "b"),
             "a/config.json": "{}", "b/config.json": "{}"}  # fmt: skip
    cases.append(Case("folders", "diffusers", stems, lines))
    bins: dict[str, Source] = {}
    for name in "ab":
        bins[f"{name}/pytorch_model-00001-of-00002.bin"] = Path("torch/flat", f"{name}.pt")
        bins[f"{name}/pytorch_model-00002-of-00002.bin"] = Path("torch/tied", f"{name}.pt")
        fc = ("fc.weight", "fc.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
        weight_map = dict.fromkeys(fc, "pytorch_model-00001-of-00002.bin")
        tied = ("embed.weight", "body", "head.weight")
        weight_map |= dict.fromkeys(tied, "pytorch_model-00002-of-00002.bin")
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        bins[f"{name}/pytorch_model.bin.index.json"] = json.dumps(index)
        bins[f"{name}/config.json"] = "{}"
    more = ["average out turned -o again", "average a b -o out.pt", "inspect out",
            "average a b -o one.safetensors"]  # fmt: skip
    cases.append(Case("folders", "bin-sharded", bins, lines + more))
    bins = {f"{n}/pytorch_model.bin": Path("torch/flat", f"{n}.pt") for n in "ab"}
    cases.append(Case("folders", "bin-single", bins, lines))
    broken = {**pair, "b/model.safetensors.index.json": '{"weight_map": {"a.w": "gone"}}'}
    lines = ["average a b -o out", "inspect b"]
    cases.append(Case("folders", "index-broken", broken, lines))
    more = {"scaler__npy": "x", "state__pkl": "x", "vocab__txt": "x", "events__out": "x"}
    sides = {**folder("a", one, "a", **more), **folder("b", one, "b", **more)}
    intended = ".npy and .pkl files will not be copied"
    cases.append(Case("folders", "side-files", sides, lines[:1], intended=intended))
    escapes = {**pair, "b/model.safetensors.index.json": '{"weight_map": {"a.w": "../x"}}'}
    cases.append(Case("folders", "index-escapes", escapes, lines))
    no_weights: dict[str, Source] = {"a/config.json": "{}", "b/config.json": "{}"}
    cases.append(Case("folders", "no-weights", no_weights, lines))
    return cases


CASES = [*policies(), *order_and_metadata(), *torch_files(), *ties(), *folders()]
