"""Train on scikit-learn's digits, average the tail's checkpoints with swavg, compare them all.

After a phase of falling learning rate, the rate stays constant and high: the iterates then
wander around a minimum, and their mean lies nearer to it than any one of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "quickstart-out"

FALLING_EPOCHS, TAIL_EPOCHS = 25, 10
FIRST_RATE, TAIL_RATE, MOMENTUM = 0.1, 0.05, 0.9
BATCH, TRAINING_IMAGES = 16, 900
NOISE = 0.3  # standard deviation added to training pixels in [0, 1], against overfitting

console = Console(highlight=False, soft_wrap=True)


class Digits:
    """1797 grey images of 8 x 8 pixels in ten classes: `TRAINING_IMAGES`, and the rest to test."""

    def __init__(self, seed: int) -> None:
        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
        pixels = (torch.from_numpy(data.data).float() / 16)[order]
        labels = torch.from_numpy(data.target)[order]
        self.train = pixels[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]
        self.test = pixels[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def learning_rate(epoch: int) -> float:
    return FIRST_RATE + (TAIL_RATE - FIRST_RATE) * min(1.0, epoch / FALLING_EPOCHS)


def train(digits: Digits, seed: int) -> list[str]:
    """Write the tail's checkpoints, each in both formats, and return their names, oldest first."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=FIRST_RATE, momentum=MOMENTUM)
    images, labels = digits.train
    names = []
    for epoch in range(FALLING_EPOCHS + TAIL_EPOCHS):
        optimizer.param_groups[0]["lr"] = learning_rate(epoch)
        for batch in torch.randperm(len(labels)).split(BATCH):
            noisy = images[batch] + NOISE * torch.randn(len(batch), images.shape[1])
            optimizer.zero_grad()
            cross_entropy(model(noisy), labels[batch]).backward()
            optimizer.step()
        if epoch >= FALLING_EPOCHS:
            name = f"epoch-{epoch + 1}"
            save_file(model.state_dict(), OUT / f"{name}.safetensors")
            full = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
            }
            torch.save(full, OUT / f"{name}.pt")
            names.append(name)
    return names


@torch.inference_mode()
def evaluate(state: dict[str, Tensor], digits: Digits) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (in percent) on the test images."""
    model = network()
    model.load_state_dict(state)
    images, labels = digits.test
    logits = model(images)
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return cross_entropy(logits, labels).item(), 100 * accuracy


def run(command: str) -> list[Path]:
    """Show a command, run it in the repository as shown, and return the paths that it printed."""
    console.print(f"[bold]$[/] {command}")
    done = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)  # swavg has said why
    published = done.stdout.splitlines()
    for path in published:
        console.print(path)
    return [ROOT / path for path in published]


def average(suffix: str) -> Path:
    """The mean of the whole tail."""
    command = f"{OUT.name}/epoch-*{suffix} -o {OUT.name}/average{suffix} --force"
    return run(f".venv/bin/swavg average {command}")[0]


def sweep() -> dict[str, dict[str, Tensor]]:
    """The mean of the last five and an EMA, from one read, by name."""
    recipes = {"mean of the last 5": "uniform:last=5", "EMA, half-life 3": "ema:half-life=3"}
    options = " ".join(f"-r {recipe}" for recipe in recipes.values())
    paths = run(
        f".venv/bin/swavg sweep {OUT.name} --pattern 'epoch-*.safetensors' {options}"
        f" -d {OUT.name}/sweep --force"
    )
    return {name: load_file(path) for name, path in zip(recipes, paths, strict=True)}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a
    )


def show_table(
    names: list[str],
    mean: dict[str, Tensor],
    others: dict[str, dict[str, Tensor]],
    digits: Digits,
) -> None:
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.add_column("checkpoint")
    table.add_column("test loss", justify="right")
    table.add_column("test accuracy", justify="right")
    scores = [evaluate(load_file(OUT / f"{name}.safetensors"), digits) for name in names]
    score = evaluate(mean, digits)
    labels = [*names[:-1], f"{names[-1]} (the last)"]
    for label, (loss, accuracy) in zip(labels, scores, strict=True):
        table.add_row(label, f"{loss:.3f}", f"{accuracy:.2f} %")
    for label, state in (*others.items(), (f"mean of the {len(names)}", mean)):
        loss, accuracy = evaluate(state, digits)
        table.add_row(label, f"{loss:.3f}", f"{accuracy:.2f} %", style="bold")
    console.print(table)
    console.print(
        f"\nThe mean of the {len(names)} has a lower loss than"
        f" {sum(score[0] < loss for loss, _ in scores)}"
        f" and a higher accuracy than {sum(score[1] > accuracy for _, accuracy in scores)}"
        f" of the {len(names)} checkpoints ({len(digits.test[1])} test images)."
    )


def show_next(names: list[str]) -> None:
    swavg, first, last = ".venv/bin/swavg", f"{OUT.name}/{names[0]}", f"{OUT.name}/{names[-1]}"
    console.print("\n[bold]Try next[/]")
    for purpose, command in (
        (
            "two checkpoints, with weights of your own",
            f"{swavg} average {first}.pt {last}.pt --weights 0.25 0.75 -o {OUT.name}/two.pt",
        ),
        (
            "the plan only; nothing is written",
            f"{swavg} average {first}.safetensors {last}.safetensors --dry-run",
        ),
        (
            "the three newest, named by another command",
            f"ls -t {OUT.name}/epoch-*.pt | head -3 | {swavg} average - -o {OUT.name}/newest.pt",
        ),
        ("real checkpoints (a download of 100 MB)", "scripts/real-checkpoints --average"),
    ):
        console.print(f"  # {purpose}\n  {command}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of data split and training (0)")
    seed = parser.parse_args().seed

    torch.set_num_threads(1)  # faster for layers this small, and the same numbers in every run
    OUT.mkdir(exist_ok=True)
    for old in OUT.glob("epoch-*"):
        old.unlink()  # the commands below take whatever has such a name
    digits = Digits(seed)
    began = time.perf_counter()
    names = train(digits, seed)
    console.print(
        f"Trained on {TRAINING_IMAGES} images of handwritten digits in"
        f" {time.perf_counter() - began:.1f} s; the last {TAIL_EPOCHS} of"
        f" {FALLING_EPOCHS + TAIL_EPOCHS} epochs, at a constant learning rate, are kept in"
        f" {OUT.name}/\n"
    )
    mean = load_file(average(".safetensors"))
    checkpoint = torch.load(average(".pt"), weights_only=True)
    if not same_bits(mean, checkpoint["model"]):
        sys.exit("The averages of the .pt and of the .safetensors files differ.")
    console.print("Both averages hold the same bits.\n")
    others = sweep()
    console.print()
    show_table(names, mean, others, digits)
    show_next(names)


if __name__ == "__main__":
    main()
