"""Cases of training: snapshots, states that earlier versions saved, batch-norm statistics.

Nothing is trained: weights move by numbers that are the same on every machine. torch and the
frameworks are imported when a case runs.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from golden.build import net, reals
from golden.running import INPUTS, Case, Command, Source

FIRST, LAST = 5, 12
"""Steps after which states were saved, and at which the averages are compared."""


def digests(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Dtype, shape and SHA-256 of each tensor's bytes."""
    import torch

    found = {}
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        digest = hashlib.sha256(data).hexdigest()[:32]
        found[name] = f"{str(tensor.dtype)[6:]} {list(tensor.shape)} {digest}"
    return found


def model(dtype: str = "float32", *, tied: bool = True) -> Any:
    """Tied weights, batch statistics, a frozen parameter and a buffer that is not saved."""
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 3)
            self.norm = nn.BatchNorm1d(3)
            self.body = nn.Linear(3, 5)
            self.head = nn.Linear(3, 7, bias=False)
            if tied:
                self.head.weight = self.embed.weight
            self.body.bias.requires_grad_(False)
            self.register_buffer("scale", torch.tensor(2.5))
            self.register_buffer("cache", torch.zeros(4), persistent=False)

    made = Small()
    moved(made, 0)
    return made.to(getattr(torch, dtype))


def moved(made: Any, step: int) -> None:
    """Give the model the weights of a step."""
    import torch

    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name == "body.bias" and step:
                continue
            count = value.numel()
            base, noise = reals(name, count), reals(f"{name} {step}", count)
            new = torch.from_numpy(base + noise / 8).reshape(value.shape)
            value.copy_(new if value.is_floating_point() else torch.tensor(step))


def walk(made: Any, first: int, last: int, after: Callable[[int], object]) -> None:
    for step in range(first + 1, last + 1):
        moved(made, step)
        after(step)


def averages() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any, int], object]]]:
    """Averages by name: how each is built on a model, and how it is told of a step."""
    from swavg.training import EMA, SWA, PowerEMA

    def ema(*arguments: Any, **options: Any) -> Any:
        return lambda made: EMA(made, *arguments, **options), lambda average, s: average.update(s)

    def swa(**options: Any) -> Any:
        steps = "start" in options
        return lambda made: SWA(
            made, **options
        ), lambda average, s: average.step() if steps else average.update()

    def power(*arguments: Any, **options: Any) -> Any:
        return lambda made: PowerEMA(
            made, *arguments, **options
        ), lambda average, s: average.update()

    inverse = {"warmup": "inverse-gamma", "warmup_options": {"power": 0.75}}
    return {
        "ema": ema(0.9),
        "ema-buffers": ema(0.99, buffers="average", frozen="average"),
        "ema-every": ema(0.8, every=2, warmup="tensorflow"),
        "ema-inverse-gamma": ema(0.9999, **inverse),
        "swa": swa(),
        "swa-start": swa(start=2, every=3),
        "swa-buffers": swa(start=0, buffers="average"),
        "power": power(),
        "power-three": power((0.05, 0.1, 0.2), buffers="average"),
    }


def values(average: Any) -> object:
    """The averaged tensors, in the average's dtype and in the model's."""
    if hasattr(average, "sigma_rel"):
        return [digests(average.averaged(index)) for index in range(len(average.sigma_rel))]
    return {"average": digests(average.averaged()), "rounded": digests(average.averaged("model"))}


def whole(name: str, dtype: str) -> object:
    """The average of an uninterrupted run, and what the model shows while it is applied."""
    made = model(dtype)
    make, tell = averages()[name]
    average = make(made)
    walk(made, 0, LAST, partial(tell, average))
    shown = average.swapped if hasattr(average, "swapped") else average.applied
    with shown():
        seen = digests(made.state_dict())
    return {"averaged": values(average), "shown": seen, "own": digests(made.state_dict()),
            "text": repr(average)}  # fmt: skip


def resumed(name: str, dtype: str) -> object:
    """The average of a run that goes on from a state that f48d0c0 saved."""
    import torch

    made = model(dtype)
    moved(made, FIRST)
    make, tell = averages()[name]
    average = make(made)
    path = INPUTS / "states" / f"{name}-{dtype}.pt"
    average.load_state_dict(torch.load(path, weights_only=True))
    walk(made, FIRST, LAST, partial(tell, average))
    return {"averaged": values(average), "text": repr(average)}


def snapshots() -> object:
    """Snapshots of all kinds, in the current folder."""
    import torch

    from swavg.training import Snapshots, save_snapshot

    made = model()
    save_snapshot("plain.safetensors", made)
    save_snapshot("step.safetensors", made, step=7, epoch=1, metrics={"val_loss": 0.25, "x": 1})
    save_snapshot("nan.safetensors", made, metrics={"val_loss": float("nan")})
    save_snapshot(
        "recipe.safetensors", made, step=7, recipe={"method": "mine", "n": 3},
        metrics={"acc": torch.tensor(0.5)}, metadata={"note": "ü"},
    )  # fmt: skip
    save_snapshot("bf16.safetensors", model("bfloat16"), step=8)
    save_snapshot("wrapped.safetensors", {f"module.{n}": t for n, t in made.state_dict().items()})
    base = torch.from_numpy(reals("base", 24)).reshape(4, 6)
    kinds = {"t": base.t(), "part": base[1:3, ::2], "empty": base[:0], "scalar": base[0, 0],
             "bool": base > 0, "complex": torch.view_as_complex(base.float().reshape(12, 2)),
             "f8": base.to(torch.float8_e4m3fn), "conj": torch.view_as_complex(
                 base.float().reshape(12, 2)).conj()}  # fmt: skip
    save_snapshot("kinds.safetensors", kinds)
    keeping = Snapshots("kept", every=2, keep=2, best=1, metric="val_loss")
    for step in range(1, 11):
        moved(made, step)
        keeping.save(made, step, {"val_loss": abs(step - 4) / 8})
    return sorted(str(path) for path in Path().rglob("*"))


def saves() -> object:
    """What PowerEMA.save writes."""
    from swavg.training import PowerEMA

    made = model()
    power = PowerEMA(made)
    walk(made, 0, 4, lambda step: power.update())
    first = power.save("power")
    walk(made, 4, 8, lambda step: power.update())
    return [str(path) for path in (*first, *power.save("power"), *power.save("other", 800))]


def applied() -> object:
    """Averages of files in a model."""
    import swavg
    from swavg.training import apply_swa, save_snapshot

    made = model()
    for step in (1, 2, 3):
        moved(made, step)
        save_snapshot(f"{step}.safetensors", made, step=step)
    paths = [f"{step}.safetensors" for step in (1, 2, 3)]
    found = {}
    for name, weights in (("mean", None), ("weighted", [0.5, 0.3, 0.2]), ("raw", [1.5, -1, 0.5])):
        apply_swa(made, paths, weights)
        found[name] = digests(made.state_dict())
    half = model("bfloat16")
    apply_swa(half, paths)
    swavg.average(paths, output="mean.safetensors")
    return {**found, "bfloat16": digests(half.state_dict())}


def library() -> object:
    """The library's own function: its report and its errors."""
    from golden.running import report

    import swavg

    for seed in "abc":
        Path(f"{seed}.safetensors").write_bytes(net(seed))
    paths = [f"{seed}.safetensors" for seed in "abc"]
    policy = swavg.Policy(exclude=("head.*",), dtype="bfloat16")
    made = swavg.average(paths, [0.2, 0.3, 0.5], output="out.safetensors", policy=policy)
    found: dict[str, object] = {"report": report(made.to_json())}
    checkpoint = swavg.open_checkpoint("a.safetensors")
    found["names"] = list(checkpoint)
    found["slice"] = checkpoint["body.weight"][1:3].tolist()
    found["read"] = checkpoint.read("body.bias").tolist()
    for arguments in (
        {"inputs": paths, "output": "out.safetensors"}, {"inputs": [], "output": "x"},
        {"inputs": "a", "output": "x"}, {"inputs": [*paths, "gone"], "output": "x"},
        {"inputs": paths, "weights": [1.0], "output": "x"},
        {"inputs": paths, "weights": [1, 1, 1], "output": "x"},
    ):  # fmt: skip
        try:
            swavg.average(**arguments)
        except swavg.SwavgError as error:
            found[str(arguments)] = f"{type(error).__name__}: {error}"
    return found


NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Batch-norm first, so that statistics are of the data alone; and one behind exact numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 3, bias=False)
        self.second = nn.BatchNorm1d(3)

    def forward(self, x):
        self.first(x)
        return self.second(x @ torch.ones(4, 3))


def batches():
    values = torch.arange(96.0).reshape(4, 6, 4) * torch.tensor([1.0, -2.0, 0.5, 0.25])
    return [(batch, torch.zeros(6)) for batch in values]


def empty():
    return []


def plain():
    return nn.Linear(2, 2)
'''


def bn() -> list[Case]:
    def weights() -> bytes:
        from golden.build import of

        tensors = {}
        for name, size in (("first", 4), ("second", 3)):
            for part in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"{name}__{part}"] = ("F32", reals(f"{name} {part}", size))
            tensors[f"{name}__num_batches_tracked"] = ("I64", 100)
        tensors["linear__weight"] = ("F32", reals("linear", 12).reshape(3, 4))
        return of({"format": "pt", "note": "kept"}, **tensors)

    call = "--model golden_net.py:Net --data golden_net.py:batches"
    files: dict[str, Source] = {"golden_net.py": NET, "avg.safetensors": weights,
                                "avg.pt": Path("states/bn.pt"),
             "w.pt": Path("torch/flat/a.pt"),
                                "hub/model.safetensors": weights,
             "hub/config.json": "{}"}  # fmt: skip
    lines: list[Command] = [
        f"bn avg.safetensors {call}", f"bn avg.safetensors {call} --json -q -o b.safetensors",
        f"bn avg.safetensors {call}", f"bn avg.pt {call}", f"bn hub {call} -o hub-bn",
        f"bn avg.safetensors {call} --batches 2 -o two.safetensors", f"bn w.pt {call}",
        f"bn avg.safetensors {call} -o - -q", f"bn gone {call}",
        "bn avg.safetensors --model golden_net.py:gone --data golden_net.py:batches -o x",
        "bn avg.safetensors --model golden_net.py:Net --data golden_net.py:empty -o x",
        "bn avg.safetensors --model golden_net.py:plain --data golden_net.py:batches -o x",
        f"bn avg.safetensors {call} -o avg.safetensors --force", "inspect b.safetensors --stats",
    ]  # fmt: skip
    return [Case("training", "bn", files, lines, marks=("torch",))]


def cases() -> Iterable[Case]:
    def case(name: str, *calls: Callable[[], object], **files: Source) -> Case:
        return Case("training", name, files, calls, marks=("torch",))

    names = ("ema", "ema-buffers", "ema-every", "ema-inverse-gamma", "swa", "swa-start",
             "swa-buffers", "power", "power-three")  # fmt: skip
    for name in names:
        for dtype in ("float32", "bfloat16"):
            yield case(
                f"{name}-{dtype}", partial(whole, name, dtype), partial(resumed, name, dtype)
            )
    yield case("snapshots", snapshots)
    yield case("saves", saves)
    yield case("applied", applied)
    lines = ["average a b --device gpu", "average a b --device cpu"]
    pair: dict[str, Source] = {"a": partial(net, "a"), "b": partial(net, "b")}
    yield Case("training", "device", pair, lines, marks=("torch",))
    yield Case("library", "average", {}, [library])


# ---- The frameworks. The gradient of each loss is a constant, so that plain SGD is exact.


def lightning_run(folder: str, last: int, start: str | None, save_at: int | None) -> object:
    """A run of Lightning to step ``last`` with all callbacks."""
    import logging

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning.pytorch as pl
    from swavg.integrations.lightning import EMACallback, SnapshotCallback, SWACallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss(self.net)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0625)

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=1)

    class Saving(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == save_at:
                trainer.save_checkpoint("saved.ckpt")

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ema = EMACallback(0.9)
    swa = SWACallback(2, 2, swap=False)
    keeping = SnapshotCallback(folder, every=3, keep=2, ema=ema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            callbacks=[ema, swa, keeping, Saving()], max_steps=last, accelerator="cpu", devices=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        module = Module()
        options = {} if start is None else {"ckpt_path": start, "weights_only": True}
        trainer.fit(module, **options)
    assert ema.ema is not None
    return {"ema": digests(ema.ema.averaged()), "swa": digests(swa.swa.averaged()),
            "own": digests(module.state_dict())}  # fmt: skip


def loss(made: Any) -> Any:
    import torch

    parts = []
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            constant = torch.from_numpy(reals(f"gradient {name}", parameter.numel())).float()
            parts.append((parameter * constant.reshape(parameter.shape)).sum())
    return sum(parts)


def transformers_run(folder: str, last: int, start: str | None, save_at: int | None) -> object:
    """A run of the Trainer to step ``last`` with all callbacks."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments
        from transformers.utils import logging
    from swavg.integrations.transformers import EMACallback, SnapshotCallback, SWACallback

    logging.set_verbosity_error()

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The Trainer saves no tied weights of a plain module.
            self.net = model(tied=False)

        def forward(self, x: Any, labels: Any = None) -> Any:
            return {"loss": loss(self.net), "logits": x}

    ema, swa = EMACallback(0.9), SWACallback(2, 2, swap=False)
    keeping = SnapshotCallback(f"{folder}/snapshots", every=3, keep=2, ema=ema)
    saving = {"save_strategy": "no"} if save_at is None else {"save_steps": save_at}
    module = Module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0625)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    data = [{"x": torch.zeros(1), "labels": torch.zeros(1)} for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            module,
            TrainingArguments(
                output_dir=folder, max_steps=last, per_device_train_batch_size=1, max_grad_norm=0,
                report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", seed=3,
                dataloader_pin_memory=False, **saving,
            ),
            train_dataset=data, callbacks=[swa, keeping], optimizers=(optimizer, schedule),
        )  # fmt: skip
        ema.attach(trainer)
        swa.attach(trainer)
        trainer.train(resume_from_checkpoint=start)
    assert ema.ema is not None
    return {"ema": digests(ema.ema.averaged()), "swa": digests(swa.swa.averaged()),
            "own": digests(module.state_dict())}  # fmt: skip


def frameworks() -> Iterable[Case]:
    marks = ("torch", "frameworks")
    for name, play, start in (
        ("lightning", lightning_run, "saved.ckpt"),
        ("transformers", transformers_run, "checkpoint-5"),
    ):
        commands = [
            partial(play, "whole", LAST, None, None),
            partial(play, "resumed", LAST, start, None),
        ]
        yield Case("frameworks", name, {start: Path(name, start)}, commands, marks=marks)


CASES = [*bn(), *cases(), *frameworks()]
