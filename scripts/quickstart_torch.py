"""Train a small convolutional network with batch-norm on scikit-learn's digits, and average it.

The learning rate falls, then stays constant and high. Of the iterates of that tail, SWA takes the
mean and EMA a moving average. Both are compared with the last checkpoint and with the best, with
batch-norm statistics as they are and recomputed, over several training runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import (
    batches,
    network,
    test_images,
    training_batches,
    training_images,
    validation_images,
)
from quickstart import (
    OUT,
    ROOT,
    SWAVG,
    OnEpoch,
    Scores,
    Trained,
    console,
    show_next,
    show_table,
    swavg,
    train_all,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swavg.training import EMA, SWA, Snapshots, apply_swa, save_snapshot, update_bn

MODEL = "--model scripts/digits.py:network"

FALLING_EPOCHS, TAIL_EPOCHS = 25, 10
FIRST_RATE, TAIL_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.05, 0.9, 5e-4
BATCH, EMA_DECAY = 16, 0.99


@dataclass(frozen=True)
class TrainedHere(Trained):
    """And what the training loop averaged by itself."""

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


def train(seed: int, folder: Path, on_epoch: OnEpoch) -> TrainedHere:
    """Write a snapshot per epoch of the tail, with its validation loss, and as .pt; and the EMA
    at the end."""
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
    for epoch in range(1, FALLING_EPOCHS + TAIL_EPOCHS + 1):
        for inputs, targets in batches(images, labels, BATCH, order):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            rate.step()
            swa.step()
            ema.update()
        if epoch > FALLING_EPOCHS:
            step = epoch * per_epoch
            loss, _ = evaluate(model, *validation_images())
            losses[snapshots.save(model, step, {"val_loss": loss})] = loss
            whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(whole | {"step": step}, folder / f"step-{step}.pt")
        on_epoch()
    saved = save_snapshot(folder / "ema.safetensors", ema.averaged(), step=step)
    return TrainedHere(losses, saved, swa.averaged())


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


def average_and_look(trained: TrainedHere) -> Path:
    """The command line over the first run: the mean in both formats, its statistics, a figure."""
    out, folder = OUT.name, trained.ema.parent.relative_to(ROOT)
    path = swavg(f"average {folder}/tail -o {out}/swa.safetensors")
    mean = load_file(path)
    legacy = swavg(f"average {folder}/step-*.pt -o {out}/swa.pt")
    if not same_bits(mean, torch.load(legacy, weights_only=True)["model"]):
        sys.exit("The averages of the .pt and of the .safetensors files differ.")
    parameters = dict(network().named_parameters())
    apart = max((mean[name] - trained.running_mean[name]).abs().max().item() for name in parameters)
    console.print(
        "\nThe averages of the .pt and of the .safetensors files hold the same bits; the running"
        f" mean\nthat the training loop kept differs from them by {apart:.0e} at most."
    )
    if apart > 1e-5:
        sys.exit("The running mean of the training loop is another one.")
    swavg(
        f"bn {out}/swa.safetensors {MODEL} --data scripts/digits.py:training_batches"
        f" -o {out}/swa-bn.safetensors"
    )
    # The plane through the first, a middle and the last checkpoint of the tail.
    names = [str(path.relative_to(ROOT)) for path in trained.checkpoints]
    swavg(
        f"landscape {names[0]} {names[len(names) // 2]} {names[-1]} {MODEL}"
        " --data scripts/digits.py:test_batches --bn-data scripts/digits.py:calibration_batches"
        f" --of test --mark {out}/swa.safetensors --series {folder}/tail -o {out}/landscape.png"
    )
    return path


def scores(path: Path) -> Scores:
    """Test loss and accuracy with the weights of a file, then with recomputed statistics."""
    model = network()
    apply_swa(model, [path])
    before = evaluate(model, *test_images())
    update_bn(model, training_batches())
    return before + evaluate(model, *test_images())


def main() -> None:
    runs = train_all(train, FALLING_EPOCHS + TAIL_EPOCHS, "about a minute")
    means = [average_and_look(runs[0])]
    for trained in runs[1:]:
        folder = trained.ema.parent.relative_to(ROOT)
        means.append(swavg(f"average {folder}/tail -o {folder}/swa.safetensors", show=False))
    show_table(
        {
            "last": "last checkpoint",
            "best": "best (validation)",
            "EMA": f"EMA, decay {EMA_DECAY}",
            "SWA": f"SWA, mean of {TAIL_EPOCHS}",
        },
        ("test loss", "accuracy, %", "loss, bn redone", "accuracy, %"),
        [
            {
                "last": scores(trained.checkpoints[-1]),
                "best": scores(trained.best),
                "EMA": scores(trained.ema),
                "SWA": scores(mean),
            }
            for trained, mean in zip(runs, means, strict=True)
        ],
    )
    console.print("'bn redone': batch-norm statistics recomputed on training images.")
    first, last = (runs[0].checkpoints[at].relative_to(ROOT) for at in (0, -1))
    show_next(
        {
            "is there a barrier between two checkpoints?": f"{SWAVG} path {first} {last} {MODEL}"
            " --data scripts/digits.py:test_batches"
            f" --bn-data scripts/digits.py:calibration_batches -o {OUT.name}/path.png",
            "which of them make the best average, by validation loss": f"{SWAVG} soup"
            f" {first.parent} {MODEL} --data scripts/digits.py:validation_batches"
            f" --bn-data scripts/digits.py:training_batches -o {OUT.name}/soup.safetensors",
            "the models alone of .pt files with optimizers": f"{SWAVG} average"
            f" {OUT.name}/run-0/step-*.pt --weights-only -o {OUT.name}/model.pt",
            "real checkpoints (a download of 100 MB)": "scripts/real-checkpoints --average",
        }
    )


if __name__ == "__main__":
    main()
