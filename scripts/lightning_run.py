"""A Lightning run on scikit-learn's digits, as people have them: a constant learning rate and a
checkpoint of every epoch, in lightning_logs. README's recipe averages it."""

from __future__ import annotations

import digits
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, RATE = 30, 0.05


class Network(lightning.LightningModule):
    """The quickstart's network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.network()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: digits.Batch) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: digits.Batch) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE, momentum=0.9, weight_decay=5e-4)


def train() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*digits.training_images()), batch_size=16, shuffle=True)


def validation() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*digits.validation_images()), batch_size=300)


def test() -> list[digits.Batch]:
    return digits.test_batches()


if __name__ == "__main__":
    lightning.seed_everything(0)
    every = ModelCheckpoint(filename="{epoch}-{step}-{val_loss:.3f}", save_top_k=-1)
    trainer = lightning.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[every])
    trainer.fit(Network(), train(), validation())
