"""Train a small network on scikit-learn's digits at a constant learning rate, and average it.

Of the checkpoints of the second half, SWA takes the mean and EMA a moving average, both made by
the command line. They are compared with the last checkpoint and the best, over several runs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "quickstart-out"
SWAVG = ".venv/bin/swavg"
TRAINING, VALIDATION, TEST = 900, 300, 597  # images

EPOCHS, TAIL = 60, 30
RATE, MOMENTUM, BATCH = 0.2, 0.9, 30
NOISE = 0.3  # standard deviation added to training pixels in [0, 1]
EMA_DECAY = 0.9  # from checkpoint to checkpoint

OnEpoch = Callable[[], object]
Scores = tuple[float, ...]  # loss and accuracy in percent, once or twice

console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Trained:
    """The checkpoints that a training run kept, in order, and their validation losses."""

    losses: Mapping[Path, float]

    @property
    def checkpoints(self) -> list[Path]:
        return list(self.losses)

    @property
    def best(self) -> Path:
        return min(self.losses, key=self.losses.__getitem__)


T = TypeVar("T", bound=Trained)


def train_all(train: Callable[[int, Path, OnEpoch], T], epochs: int, takes: str) -> list[T]:
    """Train from several seeds, each into a folder of its own, and show how far it is."""
    parser = argparse.ArgumentParser(prog="scripts/quickstart")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    runs: list[T] = []
    console.print(
        f"Training a small network {options.runs} times, from different seeds, on {TRAINING}"
        " images of handwritten digits.\n"
        f"Five runs and their averages take {takes}; files go to {OUT.name}/."
    )
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Training", total=options.runs * epochs)
        for number in range(options.runs):
            began = time.perf_counter()
            folder = OUT / f"run-{number}"
            folder.mkdir(parents=True)
            runs.append(train(options.seed + number, folder, lambda: progress.advance(bar)))
            *_, loss = runs[-1].losses.values()
            console.print(
                f"  run {number + 1} of {options.runs}: validation loss {loss:.3f} at the end,"
                f" {time.perf_counter() - began:.1f} s"
            )
    return runs


def wrapped(command: str) -> str:
    """A command over several lines, which a shell takes as they are."""
    joined = re.sub(r"( --?\w\S*) ", "\\1\0", command)  # an option and its value
    lines = textwrap.wrap(joined, 92, break_on_hyphens=False, break_long_words=False)
    return " \\\n      ".join(lines).replace("\0", " ")


def swavg(arguments: str, *, show: bool = True) -> Path:
    """Run the command line in the repository, as shown, and return the path that it printed."""
    command = f"{SWAVG} {arguments}"
    if show:
        console.print(f"\n[bold]$[/] {wrapped(command)}")
    stderr = None if show else subprocess.DEVNULL
    done = subprocess.run(
        command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{command}: exit code {done.returncode}")
    if show:
        console.print(done.stdout.rstrip())
    return ROOT / done.stdout.splitlines()[0]


def show_table(
    labels: Mapping[str, str], headings: Sequence[str], runs: Sequence[Mapping[str, Scores]]
) -> None:
    """Mean and standard deviation over the runs."""
    table = Table(box=None, pad_edge=False)
    table.add_column("weights")
    for heading in headings:
        table.add_column(heading, justify="right")
    for kind, label in labels.items():
        cells = []
        for column, values in enumerate(zip(*(scores[kind] for scores in runs), strict=True)):
            digits = 1 if column % 2 else 3
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.{digits}f}{spread}")
        table.add_row(label, *cells, style="bold" if kind == "SWA" else None)
    console.print()
    console.print(table)
    better = sum(scores["SWA"][-2] < scores["last"][-2] for scores in runs)
    console.print(
        f"\nMean ± standard deviation over {len(runs)} training runs, on {TEST} test images. SWA"
        f" has a lower loss than\nthe last checkpoint in {better} of {len(runs)} runs."
    )


def show_next(commands: Mapping[str, str]) -> None:
    console.print("\n[bold]Try next[/]")
    for purpose, command in commands.items():
        console.print(f"  [dim]# {purpose}[/]\n  {wrapped(command)}")


def images(start: int, stop: int | None) -> tuple[Any, Any]:
    """Pixels in [0, 1] and labels, in an order that is always the same."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[start:stop]
    return (pixels[order] / 16).astype(np.float32), labels[order]


def evaluate(weights: Mapping[str, Any], pixels: Any, labels: Any) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy in percent."""
    hidden = np.maximum(pixels @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    logits = hidden @ weights["output.weight"] + weights["output.bias"]
    loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()
    return float(loss), 100 * float((logits.argmax(axis=1) == labels).mean())


def train(seed: int, folder: Path, on_epoch: OnEpoch) -> Trained:
    """Write a checkpoint per epoch of the tail, with its validation loss."""
    network = MLPClassifier(
        64, solver="sgd", learning_rate_init=RATE, momentum=MOMENTUM, batch_size=BATCH,
        random_state=seed,
    )  # fmt: skip
    pixels, labels = images(0, TRAINING)
    generator = np.random.default_rng(seed)
    losses = {}
    for epoch in range(1, EPOCHS + 1):
        noise = generator.standard_normal(pixels.shape, np.float32)
        network.partial_fit(pixels + np.float32(NOISE) * noise, labels, classes=range(10))
        if epoch > EPOCHS - TAIL:
            weights = dict(zip(("hidden.weight", "output.weight"), network.coefs_, strict=True))
            weights |= zip(("hidden.bias", "output.bias"), network.intercepts_, strict=True)
            loss, _ = evaluate(weights, *images(TRAINING, TRAINING + VALIDATION))
            path = folder / f"epoch-{epoch}.safetensors"
            save_file(weights, path, {"metrics": json.dumps({"val_loss": loss})})
            losses[path] = loss
        on_epoch()
    return Trained(losses)


def main() -> None:
    runs = train_all(train, EPOCHS, "about 10 seconds")
    scores = []
    for number, trained in enumerate(runs):
        folder = trained.best.parent.relative_to(ROOT)
        means = {
            kind: swavg(f"{command} -o {folder}-{kind}.safetensors", show=number == 0)
            for kind, command in (
                ("SWA", f"average {folder}"),
                ("EMA", f"ema {folder} --decay {EMA_DECAY}"),
            )
        }
        paths = {"last": trained.checkpoints[-1], "best": trained.best, **means}
        test = images(TRAINING + VALIDATION, None)
        scores.append({kind: evaluate(load_file(path), *test) for kind, path in paths.items()})
    show_table(
        {
            "last": "last checkpoint",
            "best": f"best of {TAIL}, by validation loss",
            "EMA": f"EMA of {TAIL}, decay {EMA_DECAY}",
            "SWA": f"SWA, mean of {TAIL}",
        },
        ("test loss", "accuracy, %"),
        scores,
    )
    out, tail = OUT.name, runs[0].best.parent.relative_to(ROOT)
    first, last = (runs[0].checkpoints[at].relative_to(ROOT) for at in (0, -1))
    show_next(
        {
            "the series, and what --best 3 would choose": f"{SWAVG} list {tail} --best 3"
            " --metric val_loss",
            "two checkpoints, with weights of your own": f"{SWAVG} average {first} {last}"
            f" --weights 0.25 0.75 -o {out}/two.safetensors",
            "the three newest, named by another command": f"ls -t {tail}/* | head -3"
            f" | {SWAVG} average - -o {out}/newest.safetensors",
            "several averages from one read": f"{SWAVG} sweep {tail} -r uniform:last=5"
            f" -r ema:half-life=3 -d {out}/sweep",
            "convolutions, batch-norm, .pt files, and the loss landscape as a figure"
            " (PyTorch: 1 GB more)": "scripts/quickstart --torch",
        }
    )


if __name__ == "__main__":
    main()
