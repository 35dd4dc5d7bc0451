"""How the PyTorch files in inputs/ were made, with torch 2.13: kept to say what is in them. Made
anew by another version they would be other files, which is what these are there to forbid."""

from __future__ import annotations

import argparse
import contextlib
import enum
import io
import pickle
import shutil
import struct
import sys
import tarfile
import tempfile
import types
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from golden.build import reals
from torch import nn

from swavg.training import PowerEMA

DTYPES = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16",
    "bfloat16", "float32", "float64", "complex32", "complex64", "complex128", "float8_e4m3fn",
    "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip
NEW = ("byteorder", ".data/serialization_id", ".format_version", ".storage_alignment")
"""Records that torch 1.6 to 2.0 did not write."""


def tensor(seed: str, *shape: int) -> torch.Tensor:
    """Values that two checkpoints of one run would have: most of them in common."""
    count = int(np.prod(shape))
    values = reals(seed[1:], count) + reals(seed, count) / 8
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def weights(seed: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict(
        {"fc.weight": tensor(f"{seed}w", 4, 3), "fc.bias": tensor(f"{seed}b", 4),
         "bn.running_mean": tensor(f"{seed}m", 4), "bn.running_var": tensor(f"{seed}v", 4).abs(),
         "bn.num_batches_tracked": torch.tensor(7 + ord(seed))}
    )  # fmt: skip


def foreign() -> types.ModuleType:
    """A module that is there when files are written, and not when they are read."""
    module = types.ModuleType("foreign")

    class Colour(enum.Enum):
        RED = 1

    class Config:
        def __init__(self) -> None:
            self.width, self.colour = 3, Colour.RED

    class Holder:
        def __init__(self, value: object) -> None:
            self.value = value

    for made in (Colour, Config, Holder):
        made.__module__, made.__qualname__ = "foreign", made.__name__
        setattr(module, made.__name__, made)
    sys.modules["foreign"] = module
    return module


def optimizer() -> dict[str, object]:
    parameters = [nn.Parameter(tensor("aopt", 4, 3)), nn.Parameter(tensor("aopt2", 4))]
    made = torch.optim.AdamW(parameters, lr=0.01)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    made.step()
    return made.state_dict()


def trainer(seed: str) -> dict[str, object]:
    module = foreign()
    return {
        "epoch": 3, "global_step": 1200, "loss": 0.5, "arch": "resnet",
        "state_dict": weights(seed), "optimizer": optimizer(),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]), "config": module.Config(),
        "best": np.float64(0.25), "table": np.arange(3), "rng_state": torch.zeros(16).byte(),
    }  # fmt: skip


def lightning(seed: str) -> dict[str, object]:
    return {
        "epoch": 2, "global_step": 300 + ord(seed), "pytorch-lightning_version": "2.6.0",
        "state_dict": OrderedDict({f"net.{n}": t for n, t in weights(seed).items()}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {
            "monitor": "val_loss", "best_model_score": torch.tensor(0.25),
            "current_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer()], "lr_schedulers": [{"last_epoch": 2}],
        "hparams_name": "kwargs", "hyper_parameters": {"width": 4},
    }  # fmt: skip


def views(seed: str) -> dict[str, object]:
    """Views of one storage, as an LSTM on CUDA has; of other orders, shared, overlapping, and
    empty."""
    flat = tensor(f"{seed}flat", 60)
    base = tensor(f"{seed}base", 24)
    return {
        "lstm.weight_ih_l0": flat[:24].view(8, 3), "lstm.weight_hh_l0": flat[24:40].view(8, 2),
        "lstm.bias_ih_l0": flat[40:48], "lstm.bias_hh_l0": flat[48:56],
        "conv.weight": tensor(f"{seed}conv", 4, 3, 2, 2).to(memory_format=torch.channels_last),
        "turned": base.view(4, 6).t(), "part": base[5:9], "overlap": base[7:12],
        "expanded": base[:1].expand(5), "strided": base[::3], "scalar": base[3],
        "empty": torch.zeros(0, 3), "one": base[2:3],
        "parameter": nn.Parameter(tensor(f"{seed}p", 2, 2)), "embed": base, "head": base,
    }  # fmt: skip


def of_each_dtype(seed: str) -> dict[str, torch.Tensor]:
    found = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        if name.startswith("complex"):
            parts = tensor(f"{seed}{name}", 6, 2).to(
                {"complex32": torch.half, "complex64": torch.float32}.get(name, torch.float64)
            )
            found[name] = torch.view_as_complex(parts)
        elif name == "float8_e8m0fnu":
            exponents = torch.tensor([120 + (ord(seed) + i) % 12 for i in range(6)])
            found[name] = exponents.byte().view(dtype)
        elif dtype.is_floating_point:
            found[name] = tensor(f"{seed}{name}", 6).to(dtype)
        else:
            values = torch.arange(6) * (1 + ord(seed) % 3)
            found[name] = (values % 2 if name == "bool" else values).to(dtype)
    return found


def again(path: Path, keep: object, compression: int = zipfile.ZIP_STORED) -> None:
    """Rezip ``path`` with the records that ``keep`` chooses: as torch 1.6 to 2.0 wrote them, or as
    a tool does."""
    with zipfile.ZipFile(path) as old:
        records = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records:
            if keep(name):
                new.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compression)


class Runs:
    """Would run a command where pickles are trusted."""

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch ran",)


def pairs(folder: Path) -> None:
    """Two checkpoints of each kind that is averaged."""
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    contents = {
        "flat": weights, "trainer": trainer, "lightning": lightning, "views": views,
        "dtypes": of_each_dtype,
        "nested": lambda s: {"model": {"state_dict": weights(s), "step": 5}, "step": 5},
        "ema": lambda s: {"state_dict_ema": weights(chr(ord(s) + 4)), "state_dict": weights(s)},
        "prefixes": lambda s: {
            ("" if s == "a" else "module._orig_mod.") + n: t for n, t in weights(s).items()},
        "parts": lambda s: {"net": {"backbone": weights(s), "head": {"w": tensor(f"{s}h", 3)}}},
        "keys": lambda s: {"w": tensor(f"{s}1", 2), ("a", 1): tensor(f"{s}2", 1),
                           5: tensor(f"{s}3", 1), None: tensor(f"{s}4", 1)},
        "list": lambda s: [tensor(f"{s}1", 2), tensor(f"{s}2", 3)],
        "holder": lambda s: {"w": tensor(f"{s}1", 3), "h": foreign().Holder(tensor(f"{s}2", 2))},
        "optimizer-beside": lambda s: {"w": tensor(f"{s}1", 3), "optimizer": optimizer()},
        "gather": lambda s: {"w": tensor(f"{s}g", 97, 130) if s == "a"
                             else tensor(f"{s}g", 130, 97).t()},
        "tied": lambda s: (lambda w: {"embed.weight": w, "body": tensor(f"{s}b", 2),
                                      "head.weight": w})(tensor(f"{s}e", 3, 2)),
        "untied": lambda s: {"embed.weight": tensor(f"{s}e", 3, 2), "body": tensor(f"{s}b", 2),
                             "head.weight": tensor(f"{s}e", 3, 2)},
        "module": lambda s: (net.load_state_dict({
            "0.weight": tensor(f"{s}0", 2, 3), "0.bias": tensor(f"{s}1", 2),
            "1.weight": tensor(f"{s}2", 2), "1.bias": tensor(f"{s}3", 2),
            "1.running_mean": tensor(f"{s}4", 2), "1.running_var": tensor(f"{s}5", 2).abs(),
            "1.num_batches_tracked": torch.tensor(3)}), net)[1],
    }  # fmt: skip
    for kind, content in contents.items():
        (folder / kind).mkdir(parents=True)
        for seed in "ab":
            torch.save(content(seed), folder / kind / f"{seed}.pt")
    for kind in ("trainer", "views", "dtypes", "module"):
        (folder / f"{kind}-legacy").mkdir()
        for seed in "ab":
            path = folder / f"{kind}-legacy" / f"{seed}.pt"
            torch.save(contents[kind](seed), path, _use_new_zipfile_serialization=False)
            # With a module goes its source, and where that lies.
            ours, neutral = str(Path(sys.prefix)).encode(), b"/opt/python"
            data = path.read_bytes()
            path.write_bytes(data.replace(ours, neutral.ljust(len(ours), b"-")))
    for protocol in (2, 3, 4, 5):
        (folder / f"protocol-{protocol}").mkdir()
        for seed in "ab":
            path = folder / f"protocol-{protocol}" / f"{seed}.pt"
            torch.save(trainer(seed), path, pickle_protocol=protocol)
    for name in ("old", "rezipped"):
        (folder / name).mkdir()
        for seed in "ab":
            torch.save(trainer(seed), folder / name / f"{seed}.pt")
            again(folder / name / f"{seed}.pt", lambda record, name=name: (
                name != "old" or not record.endswith(NEW)))  # fmt: skip


def large(path: Path) -> None:
    """A zip of files of some megabytes, whose values repeat: of several orders and containers."""

    def values(seed: str, *shape: int) -> torch.Tensor:
        return (
            tensor(seed, 509).repeat(int(np.prod(shape)) // 509 + 1)[: np.prod(shape)].view(shape)
        )

    def state(seed: str, *, plain: bool = False) -> dict[str, object]:
        views = values(f"{seed}views", 300_000)
        found = {
            "conv": values(f"{seed}c", 48, 32, 24, 24).bfloat16().to(
                memory_format=torch.channels_last),
            "turned": values(f"{seed}t", 700, 900).t(),
            "half": values(f"{seed}h", 300, 1000).half(),
            "views.0": views[:120_000].view(300, 400), "views.1": views[120_001:299_000],
            "gap": views[299_500:],
        }  # fmt: skip
        if plain:
            found = {name: value.contiguous().clone() for name, value in found.items()}
        return {"epoch": 1, "state_dict": found, "optimizer": optimizer()}

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content, legacy in (
            ("a", state("a"), False), ("b", state("b"), False),
            ("plain", state("b", plain=True), False), ("legacy", state("b"), True),
        ):  # fmt: skip
            held = io.BytesIO()
            torch.save(content, held, _use_new_zipfile_serialization=not legacy)
            info = zipfile.ZipInfo(f"{name}.pt", (1980, 1, 1, 0, 0, 0))
            archive.writestr(info, held.getvalue(), zipfile.ZIP_DEFLATED)


def refused(folder: Path) -> None:
    """Files that are refused, or that look as if they should be."""
    folder.mkdir(parents=True)
    w = tensor("aw", 3)
    contents = {
        "tensor": w, "empty": {}, "numbers": {"epoch": 1}, "none": None,
        "optimizer": optimizer(), "collide": {0: w, "0": w},
        "sparse": {"w": w, "s": torch.eye(3).to_sparse()},
        "quantized": {"w": w, "q": torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)},
        "two-dicts": {"first": {"w": w}, "second": {"w": w}},
        "runs": {"w": w, "x": Runs()},
    }  # fmt: skip
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), folder / "script.pt")
    torch.save({"w": w}, folder / "deflated.pt")
    again(folder / "deflated.pt", lambda record: True, zipfile.ZIP_DEFLATED)
    whole = io.BytesIO()
    torch.save({"w": w}, whole)
    (folder / "cut.pt").write_bytes(whole.getvalue()[:-100])
    (folder / "pickle.pt").write_bytes(pickle.dumps({"w": [1.0]}, 2))
    (folder / "pointer.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    )
    (folder / "page.pt").write_text("<!DOCTYPE html>\n<html></html>\n")
    (folder / "gzip.pt").write_bytes(b"\x1f\x8b" + bytes(30))
    (folder / "nothing.pt").write_bytes(b"")
    with tarfile.open(folder / "tar.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"))
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    (folder / "hole.safetensors").write_bytes(
        struct.pack("<Q", 60) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'.ljust(60)
        + bytes(8)
    )  # fmt: skip


def earlier(folder: Path) -> None:
    """Averages that f48d0c0 wrote, for later versions to go on with; its version was 0.1.0."""
    from golden.methods import run
    from golden.running import Case, Command
    from golden.running import run as run_case

    lines: list[Command] = [
        "average run --to-step 300 -o mean.safetensors",
        "average run --dtype float32 -o five.safetensors",
        "ema run --decay 0.9 --to-step 300 --dtype float32 -o ema.safetensors",
        "ema run --decay 0.99 --per-step --debias --to-step 300 -o debiased.safetensors",
        "ema run --decay 0.9 --warmup tensorflow --to-step 300 -o warm.safetensors",
        "average a.pt b.pt -o mean.pt", "average a.pt c.pt -o mean-legacy.pt",
        "average a.pt b.pt --weights-only -o plain.pt", "average bin bin2 -o hub-bin",
        "average a.pt b.pt --max-shard-size 60 -o hub",
    ]  # fmt: skip
    files = {
        **run("BF16"), "a.pt": Path("torch/trainer/a.pt"), "b.pt": Path("torch/trainer/b.pt"),
        "c.pt": Path("torch/trainer-legacy/b.pt"), "bin/pytorch_model.bin": Path("torch/flat/a.pt"),
        "bin2/pytorch_model.bin": Path("torch/flat/b.pt"),
    }  # fmt: skip
    result = run_case(Case("", "", files, lines), folder, version="0.1.0")
    assert all(entry["exit"] == 0 for entry in result["runs"]), result
    for name in ("run", "bin", "bin2"):
        shutil.rmtree(folder / name)
    for name in "abc":
        (folder / f"{name}.pt").unlink()


def states(folder: Path) -> None:
    """States of averages after the fifth step, in training and in both frameworks; and an average
    whose batch-norm statistics are to be made."""
    from golden import training

    folder.mkdir()
    for name, (make, tell) in training.averages().items():
        for dtype in ("float32", "bfloat16"):
            model = training.model(dtype)
            average = make(model)
            training.walk(model, 0, training.FIRST, partial(tell, average))
            torch.save(average.state_dict(), folder / f"{name}-{dtype}.pt")
    scope: dict[str, object] = {}
    exec(training.NET, scope)
    net = scope["Net"]()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(tensor(f"a{name}", *value.shape).abs())
    optimizer_state = torch.optim.SGD(net.parameters(), lr=0.5).state_dict()
    torch.save({"epoch": 3, "model": net.state_dict(), "optimizer": optimizer_state},
               folder / "bn.pt")  # fmt: skip


def frameworks(folder: Path) -> None:
    from golden import training

    (folder / "lightning").mkdir()
    (folder / "transformers").mkdir()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        training.lightning_run("snapshots", training.FIRST, None, training.FIRST)
        shutil.move("saved.ckpt", folder / "lightning")
        training.transformers_run("run", training.FIRST, None, training.FIRST)
        saved = Path("run/checkpoint-5")
        (saved / "training_args.bin").unlink()
        shutil.move(saved, folder / "transformers")
        model = training.model()
        power = PowerEMA(model)
        for step in range(1, 9):
            training.moved(model, step)
            power.update()
            if step % 2 == 0:
                power.save("power")
        shutil.move("power", folder / "earlier")


if __name__ == "__main__":
    to = Path(__file__).parent / "inputs"
    pairs(to / "torch")
    refused(to / "refused")
    large(to / "large.zip")
    earlier(to / "earlier")
    states(to / "states")
    frameworks(to)
