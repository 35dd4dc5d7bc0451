"""Train a small convolutional network with batch-norm on scikit-learn's digits, and average it.

The learning rate falls, then stays constant and high. Of the iterates of that tail, SWA takes the
mean and EMA a moving average. Both are compared with the last checkpoint and with the best, with
batch-norm statistics as they are and recomputed, over several training runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import (
    TRAINING,
    batches,
    network,
    test_images,
    training_batches,
    training_images,
    validation_images,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import swavg
from swavg.training import EMA, SWA, Snapshots, apply_swa, save_snapshot, update_bn

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "quickstart-out"
FIRST = OUT / "run-0"
SWAVG = ".venv/bin/swavg"
MODEL = "--model scripts/digits.py:network"

FALLING_EPOCHS, TAIL_EPOCHS = 25, 10
FIRST_RATE, TAIL_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.05, 0.9, 5e-4
BATCH, EMA_DECAY = 16, 0.99

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Trained:
    """What a training run left: files, and the running mean that its loop kept."""

    snapshots: tuple[Path, ...]
    best: Path
    ema: Path
    running_mean: dict[str, Tensor]


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy in percent."""
    training = model.training
    logits = model.eval()(images)
    model.train(training)
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return cross_entropy(logits, labels).item(), 100 * accuracy


def train(seed: int, folder: Path, also_pt: bool = False) -> Trained:
    """Write a snapshot per epoch of the tail, with its validation loss, and the EMA at the end."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=FIRST_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    images, labels = training_images()
    per_epoch = -(-len(labels) // BATCH)
    rate = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, TAIL_RATE / FIRST_RATE, FALLING_EPOCHS * per_epoch
    )
    swa = SWA(model, start=FALLING_EPOCHS * per_epoch, every=per_epoch)
    ema = EMA(model, decay=EMA_DECAY)
    snapshots = Snapshots(folder / "tail")
    losses = {}
    step = 0
    for epoch in range(1, FALLING_EPOCHS + TAIL_EPOCHS + 1):
        for inputs, targets in batches(images, labels, BATCH, order):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            rate.step()
            swa.step()
            ema.update()
            step += 1
        if epoch > FALLING_EPOCHS:
            loss, _ = evaluate(model, *validation_images())
            losses[snapshots.save(model, step, {"val_loss": loss})] = loss
            if also_pt:
                whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(whole | {"step": step}, folder / f"step-{step}.pt")
    best = min(losses, key=losses.__getitem__)
    saved = save_snapshot(folder / "ema.safetensors", ema.averaged(), step=step)
    return Trained(snapshots.paths, best, saved, swa.averaged())


def run(command: str) -> Path:
    """Show a command, run it in the repository as shown, and return the path that it printed."""
    console.print(f"[bold]$[/] {command}")
    # One thread: faster for a network this small.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode != 0:
        sys.exit(done.returncode)  # swavg has said why
    console.print(f"{done.stdout.rstrip()}\n")
    return ROOT / done.stdout.splitlines()[0]


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


def average_and_look(trained: Trained) -> Path:
    """The command line over the first run: the mean in both formats, and its statistics."""
    out = OUT.name
    tail = FIRST.relative_to(ROOT)
    path = run(f"{SWAVG} average {tail}/tail -o {out}/swa.safetensors --force")
    mean = load_file(path)
    legacy = run(f"{SWAVG} average {tail}/step-*.pt -o {out}/swa.pt --force")
    if not same_bits(mean, torch.load(legacy, weights_only=True)["model"]):
        sys.exit("The averages of the .pt and of the .safetensors files differ.")
    parameters = dict(network().named_parameters())
    apart = max((mean[name] - trained.running_mean[name]).abs().max().item() for name in parameters)
    console.print(
        "The averages of the .pt and of the .safetensors files hold the same bits; the running"
        f" mean\nthat the training loop kept differs from them by {apart:.0e} at most.\n"
    )
    if apart > 1e-5:
        sys.exit("The running mean of the training loop is another one.")
    run(
        f"{SWAVG} bn {out}/swa.safetensors {MODEL} --data scripts/digits.py:training_batches"
        f" -o {out}/swa-bn.safetensors --force"
    )
    return path


def draw(trained: Trained) -> Path:
    """The plane through the first, a middle and the last checkpoint of the tail."""
    names = [path.relative_to(ROOT) for path in trained.snapshots]
    corners = " ".join(str(names[at]) for at in (0, len(names) // 2, -1))
    return run(
        f"{SWAVG} landscape {corners} {MODEL} --data scripts/digits.py:test_batches"
        " --bn-data scripts/digits.py:calibration_batches --of test"
        f" --mark {OUT.name}/swa.safetensors --series {FIRST.relative_to(ROOT)}/tail"
        f" -o {OUT.name}/landscape.png --force"
    )


def scores(trained: Trained, mean: Path) -> dict[str, tuple[float, ...]]:
    """Test loss and accuracy of each kind of weights, as it is and with recomputed statistics."""
    found = {}
    kinds = {"last": trained.snapshots[-1], "best": trained.best, "EMA": trained.ema, "SWA": mean}
    for kind, path in kinds.items():
        model = network()
        apply_swa(model, [path])
        before = evaluate(model, *test_images())
        update_bn(model, training_batches())
        found[kind] = before + evaluate(model, *test_images())
    return found


def show_table(runs: list[dict[str, tuple[float, ...]]]) -> None:
    """Mean and standard deviation over the runs."""
    table = Table(box=None, pad_edge=False)
    labels = {
        "last": "last checkpoint",
        "best": "best (validation)",
        "EMA": f"EMA, decay {EMA_DECAY}",
        "SWA": f"SWA, mean of {TAIL_EPOCHS}",
    }
    table.add_column("weights")
    for heading in ("test loss", "accuracy, %", "loss, bn redone", "accuracy, %"):
        table.add_column(heading, justify="right")
    for kind, label in labels.items():
        cells = []
        for values, digits in zip(
            zip(*(run[kind] for run in runs), strict=True), "3131", strict=True
        ):
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        table.add_row(label, *cells, style="bold" if kind == "SWA" else None)
    console.print(table)
    better = sum(run["SWA"][2] < run["last"][0] for run in runs)
    console.print(
        f"\nMean ± standard deviation over {len(runs)} training runs, {len(test_images()[1])} test"
        f" images. 'bn redone': batch-norm\nstatistics recomputed on training images. SWA so has a"
        f" lower loss than the last checkpoint in {better} of {len(runs)} runs."
    )


def show_next(trained: Trained) -> None:
    tail = FIRST.relative_to(ROOT)
    first, last = (trained.snapshots[at].relative_to(ROOT) for at in (0, -1))
    console.print("\n[bold]Try next[/]")
    for purpose, command in (
        (
            "the series, and what --best 3 would choose",
            f"{SWAVG} list {tail}/tail --best 3 --metric val_loss",
        ),
        (
            "two checkpoints, with weights of your own",
            f"{SWAVG} average {first} {last} --weights 0.25 0.75 -o {OUT.name}/two.safetensors",
        ),
        (
            "the three newest, named by another command",
            f"ls -t {tail}/*.pt | head -3 | {SWAVG} average - -o {OUT.name}/newest.pt",
        ),
        (
            "several averages from one read",
            f"{SWAVG} sweep {tail}/tail -r uniform:last=5 -r ema:half-life=3 -d {OUT.name}/sweep",
        ),
        (
            "is there a barrier between two checkpoints?",
            f"{SWAVG} path {first} {last} {MODEL} --data scripts/digits.py:test_batches"
            f" --bn-data scripts/digits.py:calibration_batches -o {OUT.name}/path.png",
        ),
        ("real checkpoints (a download of 100 MB)", "scripts/real-checkpoints --average"),
    ):
        console.print(f"  # {purpose}\n  {command}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="training runs, with other seeds (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (0)")
    options = parser.parse_args()

    torch.set_num_threads(1)  # faster for layers this small, and the same numbers in every run
    if OUT.exists():
        shutil.rmtree(OUT)
    began = time.perf_counter()
    trained = []
    for number in track(range(options.runs), "Training", console=console, transient=True):
        folder = OUT / f"run-{number}"
        folder.mkdir(parents=True)
        trained.append(train(options.seed + number, folder, also_pt=number == 0))
    console.print(
        f"Trained {options.runs} times on {TRAINING} images of handwritten digits in"
        f" {time.perf_counter() - began:.0f} s; the last {TAIL_EPOCHS} of"
        f" {FALLING_EPOCHS + TAIL_EPOCHS} epochs,\nat a constant learning rate, are kept in"
        f" {OUT.name}/.\n"
    )
    means = [average_and_look(trained[0])]
    for number, each in enumerate(trained[1:], 1):
        means.append(OUT / f"run-{number}" / "swa.safetensors")
        swavg.average(each.snapshots, output=means[-1])
    draw(trained[0])
    show_table([scores(each, mean) for each, mean in zip(trained, means, strict=True)])
    show_next(trained[0])


if __name__ == "__main__":
    main()
