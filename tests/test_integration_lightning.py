"""The callbacks in real Lightning runs on a real data set."""

import copy
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

from swavg.errors import RequestError
from swavg.series.inside import read_inside
from swavg.training import EMA

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.environments import SLURMEnvironment

from swavg.integrations.lightning import EMACallback, SnapshotCallback, SWACallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
]


@pytest.fixture(autouse=True)
def quiet():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def digits(first, count):
    images, labels = load_digits(return_X_y=True)
    rows = slice(first, first + count)
    images = torch.tensor(images[rows], dtype=torch.float32) / 16
    return TensorDataset(images, torch.tensor(labels[rows]))


class Digits(pl.LightningModule):
    """A small network with batch statistics, which notes the weights that each phase sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
        )
        self.seen = {"train": [], "validation": [], "test": [], "predict": []}

    def note(self, phase):
        self.seen[phase].append(self.net[0].weight.detach().clone())

    def loss(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def training_step(self, batch, batch_idx):
        self.note("train")
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.note("validation")
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.note("test")
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        self.note("predict")
        return self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return DataLoader(digits(0, 96), batch_size=16)

    def val_dataloader(self):
        return DataLoader(digits(96, 32), batch_size=32)

    test_dataloader = predict_dataloader = val_dataloader


def trainer(folder, callbacks, **more):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=callbacks, **(defaults | more))


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def by_hand(steps, decay, accumulate=1, every=1):
    """The EMA and the weights after ``steps`` steps of the same training, in a plain loop."""
    model = Digits()
    optimizer = model.configure_optimizers()
    ema = EMA(model, decay, every=every)
    averages, weights = [], []
    done = 0
    while done < steps:
        for index, batch in enumerate(model.train_dataloader(), 1):
            (model.loss(batch) / accumulate).backward()
            if index % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                ema.update()
                done += 1
                averages.append(ema.averaged())
                weights.append({n: t.clone() for n, t in model.state_dict().items()})
    return averages, weights


def test_the_average_is_that_of_a_plain_loop(tmp_path):
    callback = EMACallback(0.9)
    model = Digits()
    trainer(tmp_path, [callback], limit_val_batches=0).fit(model)
    averages, weights = by_hand(12, 0.9)
    same(callback.ema.averaged(), averages[-1])
    same(model.state_dict(), weights[-1])
    assert callback.ema.num_updates == 12


def test_only_optimizer_steps_count_while_gradients_accumulate(tmp_path):
    callback = EMACallback(0.8, every=2)
    run = trainer(tmp_path, [callback], limit_val_batches=0, accumulate_grad_batches=3)
    run.fit(Digits())
    averages, _ = by_hand(4, 0.8, accumulate=3, every=2)
    same(callback.ema.averaged(), averages[-1])
    assert callback.ema.num_updates == 2


def test_validation_sees_the_averages_and_training_goes_on_with_its_own(tmp_path):
    callback = EMACallback(0.9)
    model = Digits()
    # Validation in the middle of an epoch, at its end, and the sanity check before all.
    trainer(tmp_path, [callback], val_check_interval=3, num_sanity_val_steps=1).fit(model)
    averages, weights = by_hand(12, 0.9)
    name = "net.0.weight"
    sanity, *seen = model.seen["validation"]
    assert torch.equal(sanity, Digits().net[0].weight)
    assert len(seen) == 4
    for step, found in zip((3, 6, 9, 12), seen, strict=True):
        assert torch.equal(found, averages[step - 1][name])
    for step, found in enumerate(model.seen["train"]):
        assert torch.equal(found, weights[step - 1][name] if step else sanity)
    same(model.state_dict(), weights[-1])


def test_evaluate_false_leaves_validation_alone(tmp_path):
    model = Digits()
    trainer(tmp_path, [EMACallback(0.9, evaluate=False)]).fit(model)
    _, weights = by_hand(12, 0.9)
    assert torch.equal(model.seen["validation"][-1], weights[-1]["net.0.weight"])


def test_test_and_predict_see_the_averages_and_leave_the_weights(tmp_path):
    callback = EMACallback(0.9)
    model = Digits()
    run = trainer(tmp_path, [callback])
    run.fit(model)
    averages, weights = by_hand(12, 0.9)
    run.test(model, verbose=False)
    run.predict(model)
    run.validate(model, verbose=False)
    for phase in ("test", "predict", "validation"):
        assert torch.equal(model.seen[phase][-1], averages[-1]["net.0.weight"]), phase
    same(model.state_dict(), weights[-1])


class Alike(Digits):
    """Trained on the same batch again and again: in the middle of an epoch Lightning starts over
    with the data."""

    def train_dataloader(self):
        batch = digits(0, 16).tensors
        return DataLoader(
            TensorDataset(*(each.repeat(6, *[1] * (each.ndim - 1)) for each in batch)), 16
        )


@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_run_that_is_resumed_equals_one_without_interruption(step, tmp_path):
    options = {"decay": 0.9, "warmup": "tensorflow"}
    whole = EMACallback(**options)
    uninterrupted = Alike()
    trainer(tmp_path, [whole]).fit(uninterrupted)

    saving = pl.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1
    )
    first = trainer(tmp_path, [EMACallback(**options), saving], enable_checkpointing=True)
    first.fit(Alike())
    second = EMACallback(**options)
    model = Alike()
    run = trainer(tmp_path, [second])
    run.fit(model, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert run.global_step == 12
    same(model.state_dict(), uninterrupted.state_dict())
    same(second.ema.averaged(), whole.ema.averaged())
    assert second.ema.num_updates == 12


def test_a_checkpoint_is_tested_with_its_own_average(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    callback = EMACallback(0.9)
    model = Digits()
    run = trainer(tmp_path, [callback, saving], enable_checkpointing=True)
    run.fit(model)
    averages, weights = by_hand(12, 0.9)
    checkpoint = torch.load(tmp_path / "step=6.ckpt")
    same(checkpoint["state_dict"], weights[5])
    # One without an average is tested as it is.
    for callbacks in ({"callbacks": {}}, {}):
        del checkpoint["callbacks"]
        checkpoint |= callbacks
        torch.save(checkpoint, tmp_path / "bare.ckpt")
        run.test(model, ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
        assert torch.equal(model.seen["test"][-1], averages[5]["net.0.weight"])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run.test(model, ckpt_path=tmp_path / "bare.ckpt", verbose=False)
        assert any("The checkpoint has no average" in str(each.message) for each in told)
        assert torch.equal(model.seen["test"][-1], weights[5]["net.0.weight"])
    same(callback.ema.averaged(), averages[5])


def test_an_average_that_was_loaded_and_not_used_does_not_come_back(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    callback = EMACallback(0.9, evaluate=False)
    trainer(tmp_path, [callback, saving], enable_checkpointing=True).fit(Digits())
    run = trainer(tmp_path, [callback], limit_val_batches=0)
    run.test(Digits(), ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
    run.fit(Digits())
    same(callback.ema.averaged(), by_hand(12, 0.9)[0][-1])


def test_a_run_that_starts_from_a_checkpoint_without_an_average_starts_a_new_one(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    trainer(tmp_path, [saving], enable_checkpointing=True).fit(Digits())
    callback, model = EMACallback(0.9), Digits()
    trainer(tmp_path, [callback]).fit(model)
    run = trainer(tmp_path, [callback])
    warned(lambda: run.fit(model, ckpt_path=tmp_path / "step=6.ckpt"))
    assert callback.ema.num_updates == 6


def test_an_error_in_validation_leaves_the_training_weights(tmp_path):
    class Failing(Digits):
        def validation_step(self, batch, batch_idx):
            # The error that is to be seen is this one, and not that this changed the averages.
            with torch.no_grad():
                self.net[0].weight.add_(1)
            raise ValueError("no data")

    model = Failing()
    _, weights = by_hand(6, 0.9)
    with pytest.raises(ValueError, match="no data"):
        trainer(tmp_path, [EMACallback(0.9)], num_sanity_val_steps=0).fit(model)
    same(model.state_dict(), weights[-1])


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "swavg", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_snapshots_of_the_averages_have_what_validation_measured_on_them(tmp_path):
    ema = EMACallback(0.9)
    folder = tmp_path / "snapshots"
    keeping = SnapshotCallback(folder, every=2, keep=2, best=1, metric="val_loss", ema=ema)
    model = Digits()
    run = trainer(tmp_path, [ema, keeping], val_check_interval=4, max_steps=12)
    run.fit(model)
    averages, _ = by_hand(12, 0.9)
    listed = json.loads(command("list", folder, "--json"))
    # Validated after steps 4 and 10: within each epoch of 6.
    assert [entry["step"] for entry in listed["checkpoints"]] == [10, 12]
    for entry in listed["checkpoints"]:
        same(safetensors.torch.load_file(entry["path"]), averages[entry["step"] - 1])
    model.load_state_dict(averages[9])
    model.eval()
    expected = model.loss(next(iter(model.val_dataloader()))).item()
    assert listed["checkpoints"][0]["metrics"] == {"val_loss": pytest.approx(expected)}
    assert listed["checkpoints"][1]["metrics"] == {}
    assert read_inside(str(folder / "step-10.safetensors")).averaged
    out = tmp_path / "best.safetensors"
    command("average", folder, "--best", "1", "--metric", "val_loss", "-o", out)
    same(safetensors.torch.load_file(out), averages[9])


def test_snapshots_after_each_validation(tmp_path):
    folder = tmp_path / "snapshots"
    model = Digits()
    trainer(tmp_path, [SnapshotCallback(folder)]).fit(model)
    _, weights = by_hand(12, 0.9)
    for step in (6, 12):
        path = folder / f"step-{step}.safetensors"
        same(safetensors.torch.load_file(path), weights[step - 1])
        assert set(read_inside(str(path)).metrics) == {"val_loss"}
    assert len(list(folder.iterdir())) == 2


def test_training_weights_do_not_get_the_metrics_of_the_averages(tmp_path):
    keeping = SnapshotCallback(tmp_path / "a", every=6)
    trainer(tmp_path, [keeping, EMACallback(0.9)]).fit(Digits())
    assert [dict(read_inside(str(path)).metrics) for path in keeping.snapshots.paths] == [{}, {}]
    deciding = SnapshotCallback(tmp_path / "b", every=6, best=1, metric="val_loss")
    with pytest.raises(RequestError, match="cannot be told"):
        trainer(tmp_path, [deciding, EMACallback(0.9)]).fit(Digits())
    stranger = SnapshotCallback(tmp_path / "c", ema=EMACallback(0.9))
    with pytest.raises(RequestError, match="not one of the trainer's"):
        trainer(tmp_path, [stranger]).fit(Digits())


@pytest.mark.parametrize(("accumulate", "every"), [(1, 3), (3, 2)])
def test_a_resumed_run_leaves_the_same_snapshots(accumulate, every, tmp_path):
    done = 6 // accumulate

    def run(folder, **more):
        ema = EMACallback(0.9)
        callbacks = [
            ema,
            SnapshotCallback(folder, every=every, keep=2, best=1, metric="val_loss", ema=ema),
            pl.callbacks.ModelCheckpoint(
                tmp_path, "{step}", every_n_train_steps=done, save_top_k=-1
            ),
        ]
        more = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True, **more}
        return trainer(tmp_path, callbacks, **more)

    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(whole).fit(Digits())
    run(halves, max_epochs=1).fit(Digits())
    run(halves).fit(Digits(), ckpt_path=tmp_path / f"step={done}.ckpt")
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in halves.iterdir()
    }
    assert len(list(whole.iterdir())) >= 2


def test_wrong_options_are_refused_before_training(tmp_path):
    with pytest.raises(RequestError, match="unexpected keyword argument 'foo'"):
        EMACallback(0.9, foo=1)
    with pytest.raises(RequestError, match="decay"):
        EMACallback(1.5)
    with pytest.raises(RequestError, match="every"):
        SnapshotCallback(tmp_path, every=0)
    with pytest.raises(RequestError, match="warm-up"):
        EMACallback(0.9, warmup="nonsense")


def test_several_optimizers_count_one_update_a_batch_and_pass_over_no_snapshot(tmp_path):
    class Adversaries(Digits):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 3)]

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    ema = EMACallback(0.9)
    keeping = SnapshotCallback(tmp_path / "run", every=5, ema=ema)
    run = trainer(tmp_path, [ema, keeping], limit_val_batches=0, max_epochs=1)
    run.fit(Adversaries())
    # Six batches of two steps each.
    assert (run.global_step, ema.ema.num_updates) == (12, 6)
    assert [path.name for path in keeping.snapshots.paths] == [
        "step-6.safetensors", "step-10.safetensors",
    ]  # fmt: skip


def test_two_averages_cannot_both_be_evaluated(tmp_path):
    class Second(EMACallback):
        pass

    with pytest.raises(RequestError, match="Two EMACallbacks"):
        trainer(tmp_path, [EMACallback(0.9), Second(0.99)]).fit(Digits())
    second = Second(0.99, evaluate=False)
    trainer(tmp_path, [EMACallback(0.9), second], limit_val_batches=0).fit(Digits())
    same(second.ema.averaged(), by_hand(12, 0.99)[0][-1])


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_a_missing_framework_is_named_with_what_to_install(framework):
    script = (
        "import sys\n"
        "for name in ('lightning', 'pytorch_lightning', 'transformers'): sys.modules[name] = None\n"
        f"import swavg.integrations.{framework}"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"MissingDependencyError: swavg.integrations.{framework} needs" in result.stderr
    assert f"pip install {framework}" in result.stderr


# ---- The running mean.


def rates_of(model):
    """The model, noting the learning rate of each optimizer step in ``model.rates``."""
    model.rates = []
    kept = model.on_before_optimizer_step

    def note(optimizer):
        model.rates.append(optimizer.param_groups[0]["lr"])
        kept(optimizer)

    model.on_before_optimizer_step = note
    return model


def mean_by_hand(weights, steps):
    """torch's own running mean of the weights after ``steps`` (from 1), with the last buffers."""
    model = Digits()
    averaged = AveragedModel(model)
    for step in steps:
        model.load_state_dict(weights[step - 1])
        averaged.update_parameters(model)
    return averaged.module.state_dict()


def warned(act, *arguments):
    """What swavg warns of in the act, as text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act(*arguments)
    return "\n".join(str(each.message) for each in caught)


def same_parameters(found, expected):
    for name, _ in Digits().named_parameters():
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    ("start", "every", "steps"),
    [(4, 3, [7, 10]), (0, 1, range(1, 13)), (0.5, 2, [8, 10, 12]), (3, None, [6, 12]),
     (6, None, [12])],
)  # fmt: skip
def test_the_mean_is_torchs_of_a_plain_loop(start, every, steps, tmp_path):
    callback = SWACallback(start, every, swap=False)
    model = Digits()
    trainer(tmp_path, [callback]).fit(model)
    _, weights = by_hand(12, 0.9)
    assert callback.swa.n == len(steps)
    same_parameters(callback.swa.averaged(), mean_by_hand(weights, steps))
    same(model.state_dict(), weights[-1])
    # Validation was of the training weights.
    assert torch.equal(model.seen["validation"][-1], weights[-1]["net.0.weight"])


def test_only_optimizer_steps_count_for_the_mean(tmp_path):
    callback = SWACallback(1, 2, swap=False)
    run = trainer(tmp_path, [callback], limit_val_batches=0, accumulate_grad_batches=3)
    run.fit(Digits())
    _, weights = by_hand(4, 0.9, accumulate=3)
    assert callback.swa.n == 1
    same_parameters(callback.swa.averaged(), weights[2])


def test_the_model_has_the_mean_when_training_ends_and_goes_back(tmp_path):
    callback = SWACallback(4, 2)
    model = Digits()
    run = trainer(tmp_path, [callback])
    assert "callback.swa.update_bn" in warned(run.fit, model)
    _, weights = by_hand(12, 0.9)
    expected = mean_by_hand(weights, [6, 8, 10, 12])
    same_parameters(model.state_dict(), expected)
    run.test(model, verbose=False)
    assert torch.equal(model.seen["test"][-1], expected["net.0.weight"])
    # What is saved now is the result.
    run.save_checkpoint(tmp_path / "result.ckpt")
    saved = torch.load(tmp_path / "result.ckpt")
    same(saved["state_dict"], model.state_dict())
    loader = model.train_dataloader()
    before = model.net[1].running_mean.clone()
    callback.swa.update_bn(loader, forward=lambda digits, batch: digits.net(batch[0]))
    reference = Digits()
    reference.load_state_dict(expected)
    update_bn(loader, reference.net)
    assert torch.equal(model.net[1].running_mean, reference.net[1].running_mean)
    assert not torch.equal(model.net[1].running_mean, before)
    callback.swa.swap()
    same(model.state_dict(), weights[-1])


class Scheduled(Digits):
    """With a scheduler of its own, which halves the rate at each step."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def test_from_the_start_on_the_rate_is_that_of_the_averaging(tmp_path):
    model = rates_of(Scheduled())
    callback = SWACallback(4, 2, lr=0.004, anneal_steps=2, anneal="linear", swap=False)
    trainer(tmp_path, [callback], limit_val_batches=0).fit(model)
    own = [0.01 * 0.5**i for i in range(4)]
    first = 0.01 * 0.5**4
    assert model.rates == pytest.approx([*own, (first + 0.004) / 2, *[0.004] * 7])


def test_the_rate_goes_in_cycles_that_end_where_weights_are_averaged(tmp_path):
    model = rates_of(Digits())
    callback = SWACallback(2, 5, lr=0.01, lr_low=0.005, swap=False)
    trainer(tmp_path, [callback], limit_val_batches=0, accumulate_grad_batches=1).fit(model)
    cycle = [0.009, 0.008, 0.007, 0.006, 0.005]
    assert model.rates == pytest.approx([0.01, 0.01, *cycle, *cycle])
    assert callback.swa.n == 2


@pytest.mark.parametrize("every", [2, None])
@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_mean_that_is_resumed_equals_one_without_interruption(step, every, tmp_path):
    def averaging():
        return SWACallback(4, every, lr=0.005, anneal_steps=6, swap=False)

    whole, uninterrupted = averaging(), Alike()
    trainer(tmp_path, [whole]).fit(uninterrupted)
    saving = pl.callbacks.ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1
    )
    trainer(tmp_path, [averaging(), saving], enable_checkpointing=True).fit(Alike())
    second, model = averaging(), rates_of(Alike())
    trainer(tmp_path, [second]).fit(model, ckpt_path=tmp_path / f"step={step}.ckpt")
    same(model.state_dict(), uninterrupted.state_dict())
    same(second.swa.averaged(), whole.swa.averaged())
    assert second.swa.n == whole.swa.n


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_whatever_is_shown_a_checkpoint_has_training_weights_and_averages(
    tmp_path, weights_only, in_place
):
    class Saves(Digits):
        def on_validation_epoch_end(self):
            if self.trainer.global_step == 6:
                assert torch.equal(self.net[0].weight, averages[5]["net.0.weight"])
                self.trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)

        def on_save_checkpoint(self, checkpoint):
            checkpoint["own"] = 1

    averages, weights = by_hand(12, 0.9)
    model = Saves()
    run = trainer(tmp_path, [EMACallback(0.9, in_place=in_place)])
    run.fit(model)
    assert torch.equal(model.seen["validation"][-1], averages[-1]["net.0.weight"])
    checkpoint = torch.load(tmp_path / "x.ckpt")
    assert checkpoint["own"] == 1
    assert "optimizer_states" not in checkpoint or not weights_only
    same(checkpoint["state_dict"], weights[5])
    run.test(model, ckpt_path=tmp_path / "x.ckpt", verbose=False)
    assert torch.equal(model.seen["test"][-1], averages[5]["net.0.weight"])
    assert "on_save_checkpoint" not in vars(model)


class SavesAtFour(pl.Callback):
    """Saves after the fourth optimizer step."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 4:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/four.ckpt")
            self.there = [path.name for path in Path(trainer.default_root_dir).glob("step-*")]


@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_has_the_average_of_its_step_whoever_saves_it(first, tmp_path):
    ema = EMACallback(0.9)
    keeping = SnapshotCallback(tmp_path, every=4, ema=ema)
    averaging = [ema, SWACallback(0, 2, swap=False), keeping]
    saves = SavesAtFour()
    trainer(tmp_path, [saves, *averaging] if first else [*averaging, saves]).fit(Digits())
    assert saves.there == ["step-4.safetensors"]
    same(safetensors.torch.load_file(tmp_path / "step-4.safetensors"), by_hand(4, 0.9)[0][3])
    states = torch.load(tmp_path / "four.ckpt")["callbacks"]
    averages, weights = by_hand(12, 0.9)
    same_parameters(states["EMACallback"]["averages"], averages[3])
    assert (states["EMACallback"]["num_updates"], states["SWACallback"]["n"]) == (4, 2)
    same_parameters(states["SWACallback"]["averages"], mean_by_hand(weights, [2, 4]))


def test_checkpoints_of_weights_alone_have_the_averages_also_after_training(tmp_path):
    model = Digits()
    model.on_save_checkpoint = lambda checkpoint: checkpoint.update(own=1)
    averaging = [EMACallback(0.9), SWACallback(0, 2, swap=False)]
    run = trainer(tmp_path, averaging)
    run.fit(model)
    for _ in range(2):
        run.save_checkpoint(tmp_path / "x.ckpt", weights_only=True)
        saved = torch.load(tmp_path / "x.ckpt")
        assert saved["own"] == 1
        assert set(saved["callbacks"]) == {"EMACallback", "SWACallback"}
        assert "optimizer_states" not in saved
    # A copy of the trainer saves its own: one without callbacks no averages.
    run.callbacks.clear()
    with warnings.catch_warnings():
        # Of torch's own, which the Trainer holds.
        warnings.simplefilter("ignore")
        copied = copy.deepcopy(run)
    run.callbacks.append(averaging[0])
    copied.save_checkpoint(tmp_path / "copy.ckpt", weights_only=True)
    assert "callbacks" not in torch.load(tmp_path / "copy.ckpt")


def test_a_snapshot_that_is_due_when_validation_saves_has_the_training_weights(tmp_path):
    class Saves(Digits):
        def on_validation_epoch_end(self):
            if self.trainer.global_step == 6:
                self.trainer.save_checkpoint(tmp_path / "x.ckpt")
                self.written = safetensors.torch.load_file(tmp_path / "step-6.safetensors")

    model = Saves()
    trainer(tmp_path, [SnapshotCallback(tmp_path, every=6), EMACallback(0.9)]).fit(model)
    same(model.written, by_hand(6, 0.9)[1][-1])


def test_a_job_that_is_requeued_during_validation_goes_on_bit_for_bit(tmp_path, monkeypatch):
    class Requeued(Alike):
        signalled = False

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.trainer.global_step == 6 and self.signalled:
                self.signalled = False
                os.kill(os.getpid(), signal.SIGUSR1)

    for name in ("JOB_ID", "NTASKS", "LOCALID", "PROCID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "1" if name in ("JOB_ID", "NTASKS") else "0")
    # What asks the scheduler to start the job again.
    (tmp_path / "scontrol").write_text("#!/bin/sh\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    runs = []
    for signalled in (True, False):
        ema, swa, model = EMACallback(0.9), SWACallback(2, 3, swap=False), Requeued()
        model.signalled = signalled
        slurm = SLURMEnvironment(auto_requeue=True)
        trainer(tmp_path, [ema, swa], plugins=[slurm]).fit(model)
        assert (tmp_path / "hpc_ckpt_1.ckpt").exists()
        runs.append((ema.ema.averaged(), swa.swa.averaged(), model.state_dict()))
    # The second began at the checkpoint.
    assert len(model.seen["train"]) == 6
    for whole, resumed in zip(*runs, strict=True):
        same(whole, resumed)


def test_a_run_that_goes_on_without_an_average_says_so(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=6, save_top_k=-1)
    trainer(tmp_path, [saving], enable_checkpointing=True).fit(Digits())
    for averaging in (EMACallback(0.9), SWACallback(2, 2, swap=False)):
        run = trainer(tmp_path, [averaging])
        told = warned(lambda run=run: run.fit(Digits(), ckpt_path=tmp_path / "step=6.ckpt"))
        assert "without the average of before: a new one starts" in told
        assert "a new one starts" not in warned(trainer(tmp_path, [averaging]).fit, Digits())


def test_metrics_are_only_of_the_average_that_is_evaluated(tmp_path):
    class Second(EMACallback):
        pass

    first, second = EMACallback(0.9), Second(0.99, evaluate=False)
    keeping = [SnapshotCallback(tmp_path / str(i), ema=e) for i, e in enumerate((first, second))]
    trainer(tmp_path, [first, second, *keeping], max_epochs=1).fit(Digits())
    (evaluated,), (other,) = (each.snapshots.paths for each in keeping)
    assert read_inside(str(evaluated)).metrics.keys() == {"val_loss"}
    assert read_inside(str(other)).metrics == {}


@pytest.mark.parametrize("devices", [1, 2])
def test_layers_that_come_late_and_several_processes_are_averaged(devices, tmp_path):
    """The average is that of the training weights which the checkpoints of each step have."""
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    more = {"strategy": "ddp_spawn", "devices": 2} if devices == 2 else {}
    run = trainer(tmp_path, [EMACallback(0.5), saving], enable_checkpointing=True, **more)
    run.fit(Late())
    assert len(list(tmp_path.glob("*.ckpt"))) == 12 // devices
    expected = {name: t.detach().clone() for name, t in Digits().named_parameters()}
    for step in range(1, 12 // devices + 1):
        found = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        for name, average in expected.items():
            average.lerp_(found["state_dict"][name], 0.5)
        same_parameters(found["callbacks"]["EMACallback"]["averages"], expected)


class Late(Digits):
    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = Digits().net


class Copied(Digits):
    copies = ()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["of"] = id(self)

    def on_train_epoch_end(self):
        self.copies = [copy.deepcopy(self), pickle.loads(pickle.dumps(self))]


def test_a_copy_of_the_module_in_training_is_one_without_the_trainer(tmp_path):
    """Other callbacks copy or pickle the module, and not with it the trainer and its data."""
    model = Copied()
    trainer(tmp_path, [EMACallback(0.9)], max_epochs=1).fit(model)
    for each in model.copies:
        checkpoint = {}
        each.on_save_checkpoint(checkpoint)
        assert checkpoint["of"] == id(each) != id(model)
        assert each._trainer is None
        same_parameters(dict(each.named_parameters()), dict(model.named_parameters()))
    assert len(model.copies) == 2


def test_a_mean_of_another_start_goes_on_from_its_own(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    run = trainer(tmp_path, [SWACallback(4, 2, swap=False), saving], enable_checkpointing=True)
    run.fit(Digits())
    other = SWACallback(6, 1, lr=0.01, swap=False)
    run = trainer(tmp_path, [other])
    told = warned(lambda: run.fit(Digits(), ckpt_path=tmp_path / "step=8.ckpt"))
    assert "begun after step 4, and start says 6" in told
    assert "made with every 2; it goes on with 1" in told
    assert "made with lr None; it goes on with 0.01" in told
    assert other.swa.n == 6


def test_a_run_that_ends_before_the_start_says_so_and_keeps_its_weights(tmp_path):
    model = Digits()
    run = trainer(tmp_path, [SWACallback(100, 2)])
    assert "Nothing was averaged: the run ended after 12" in warned(run.fit, model)
    same(model.state_dict(), by_hand(12, 0.9)[1][-1])


def test_training_goes_on_from_the_own_weights_after_a_swap(tmp_path):
    callback, model = SWACallback(4, 2), Digits()
    warned(trainer(tmp_path, [callback], limit_val_batches=0).fit, model)
    last = by_hand(12, 0.9)[1][-1]
    # Again, with another trainer: its steps count from 0.
    warned(trainer(tmp_path, [callback], limit_val_batches=0).fit, model)
    assert torch.equal(model.seen["train"][12], last["net.0.weight"])


def test_wrong_options_of_the_mean_are_refused_before_training(tmp_path):
    for arguments, said in (
        ({"start": -1}, "start"),
        ({"start": 1.5}, "start"),
        ({"start": 1.0}, "the whole run"),
        ({"start": 0, "every": 0}, "every"),
        ({"start": 0, "lr": -1.0}, "lr is"),
        ({"start": 0, "lr_low": 0.1, "every": 2}, "need lr"),
        ({"start": 0, "lr": 0.2, "lr_low": 0.1}, "lr_low needs every"),
        ({"start": 0, "foo": 1}, "unexpected keyword argument 'foo'"),
        ({"start": 0, "buffers": "nonsense"}, "buffers"),
    ):
        with pytest.raises(RequestError, match=said):
            SWACallback(**arguments)
    with pytest.raises(RequestError, match="no average before training"):
        _ = SWACallback(0).swa

    class Two(Digits):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), lr=0.1) for i in (0, 3)]

    with pytest.raises(RequestError, match="lr is the rate of one optimizer; there are 2"):
        trainer(tmp_path, [SWACallback(0, 1, lr=0.1)]).fit(Two())
    with pytest.raises(RequestError, match="a run whose length is not known"):
        trainer(tmp_path, [SWACallback(0.5, 1)], max_epochs=-1).fit(Digits())


def test_a_start_within_the_first_epoch_is_told_to_be_in_steps(tmp_path):
    callback, model = SWACallback(2), Digits()
    told = warned(trainer(tmp_path, [callback]).fit, model)
    assert "start=2 are optimizer steps, within the first epoch of 6" in told
    assert callback.swa.n == 2
    # Within a later epoch: nobody counts epochs so.
    told = warned(trainer(tmp_path, [SWACallback(8)], max_epochs=3).fit, Digits())
    assert "optimizer steps" not in told


@pytest.mark.parametrize("every", [4, None])
def test_another_run_has_an_average_of_its_own(every, tmp_path):
    callback, model = SWACallback(0.5, every, lr=0.005), rates_of(Digits())
    warned(trainer(tmp_path, [callback], limit_val_batches=0).fit, model)
    callback.swa.swap()
    first = callback.swa
    model.rates.clear()
    warned(trainer(tmp_path, [callback], limit_val_batches=0).fit, model)
    assert callback.swa is not first
    assert callback.swa.n == 1
    assert model.rates == [0.01] * 6 + [0.005] * 6
    own = {name: tensor.clone() for name, tensor in callback.swa.averaged().items()}
    same_parameters(model.state_dict(), own)


def test_the_same_run_goes_on_with_its_average(tmp_path):
    callback, model = SWACallback(4, 2), Digits()
    run = trainer(tmp_path, [callback], limit_val_batches=0, max_epochs=1)
    warned(run.fit, model)
    assert callback.swa.n == 1
    run.fit_loop.max_epochs = 2
    warned(run.fit, model)
    assert callback.swa.n == 4
    found = model.net[0].weight.detach().clone()
    callback.swa.swap()
    # The weights before a step are those after the one before.
    after = [*model.seen["train"][1:], model.net[0].weight.detach()]
    expected = after[5].clone()
    for n, step in enumerate((8, 10, 12), 1):
        expected += (after[step - 1] - expected) / (n + 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_run_without_a_last_epoch_has_a_mean_but_no_share(tmp_path):
    endless = {"max_epochs": -1, "max_time": {"hours": 1}, "limit_val_batches": 0}
    swa, model = SWACallback(6), Digits()
    stop = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda run, _: setattr(run, "should_stop", run.current_epoch == 3)
    )
    trainer(tmp_path, [swa, stop], **endless).fit(model)
    assert swa.swa.n == 3
    same_parameters(kept(model), swa.swa.averaged())
    with pytest.raises(RequestError, match="a share of a run whose length is not known"):
        trainer(tmp_path, [SWACallback(0.5)], **endless).fit(Digits())


def test_a_share_of_a_run_by_hand_is_refused(tmp_path):
    class ByHand(Digits):
        automatic_optimization = False

    with pytest.raises(RequestError, match="Give start as a number of optimizer steps"):
        trainer(tmp_path, [SWACallback(0.5)]).fit(ByHand())


def test_snapshots_of_a_later_run_have_metrics_again(tmp_path):
    keeping = SnapshotCallback(tmp_path / "a")
    trainer(tmp_path, [EMACallback(0.9), keeping], max_epochs=1).fit(Digits())
    assert [dict(read_inside(str(path)).metrics) for path in keeping.snapshots.paths] == [{}]
    trainer(tmp_path, [keeping], max_epochs=1).fit(Digits())
    (path,) = keeping.snapshots.paths
    assert set(read_inside(str(path)).metrics) == {"val_loss"}


def kept(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saving_every(step, folder, **more):
    return pl.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=step, save_top_k=-1, **more
    )


def test_what_is_saved_when_training_ends_are_the_training_weights(tmp_path):
    # Never at a step: ModelCheckpoint saves the last one when training ends.
    saving = saving_every(1000, tmp_path, save_last=True)
    callback, keeping = SWACallback(4, 2), SnapshotCallback(tmp_path / "snapshots", every=12)
    run = trainer(
        tmp_path, [callback, keeping, saving], enable_checkpointing=True, limit_val_batches=0
    )
    warned(run.fit, Digits())
    last = by_hand(12, 0.9)[1][-1]
    same(torch.load(tmp_path / "last.ckpt")["state_dict"], last)
    same(safetensors.torch.load_file(keeping.snapshots.paths[-1]), last)
    resumed = SWACallback(4, 2, swap=False)
    run = trainer(tmp_path, [resumed], limit_val_batches=0, max_epochs=3)
    run.fit(Digits(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.swa.n == 7


class SavesFirst(pl.Callback):
    """Saves when training starts, before callbacks that come after it know of that."""

    def on_train_start(self, trainer, pl_module):
        trainer.save_checkpoint(f"{trainer.default_root_dir}/first.ckpt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: EMACallback(0.9),
        lambda: EMACallback(0.9, evaluate=False),
        lambda: SWACallback(0, 2, swap=False),
    ],
)
def test_an_average_that_was_loaded_is_in_what_is_saved_before_it_is_used(make, tmp_path):
    saving = saving_every(6, tmp_path)
    trainer(tmp_path, [make(), saving], enable_checkpointing=True).fit(Digits())
    run, model = trainer(tmp_path, [SavesFirst(), make()]), Digits()
    run.fit(model, ckpt_path=tmp_path / "step=6.ckpt")
    run = trainer(tmp_path, [make()])
    run.validate(model, ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
    run.save_checkpoint(tmp_path / "validated.ckpt", weights_only=True)
    loaded = torch.load(tmp_path / "step=6.ckpt")
    for name in ("first.ckpt", "validated.ckpt"):
        saved = torch.load(tmp_path / name)
        same(saved["state_dict"], loaded["state_dict"])
        ((key, state),) = saved["callbacks"].items()
        same(state.pop("averages"), loaded["callbacks"][key]["averages"])
        assert state.items() <= loaded["callbacks"][key].items()


def test_a_checkpoint_that_is_tested_leaves_the_mean_as_it_is(tmp_path):
    callback, model = SWACallback(4, 2), Digits()
    run = trainer(tmp_path, [callback, saving_every(3, tmp_path)], enable_checkpointing=True)
    warned(run.fit, model)
    mean, weights = kept(model), by_hand(12, 0.9)[1]
    run.test(model, ckpt_path=tmp_path / "step=3.ckpt", verbose=False)
    assert torch.equal(model.seen["test"][-1], weights[2]["net.0.weight"])
    same(callback.swa.averaged(), mean)
    same(model.state_dict(), weights[2])
    callback.swa.swap()
    same(model.state_dict(), mean)


def test_a_fit_from_a_checkpoint_starts_from_its_weights_though_the_model_has_the_mean(tmp_path):
    callback, model = SWACallback(4, 2), Alike()
    saving = saving_every(6, tmp_path)
    warned(trainer(tmp_path, [callback, saving], enable_checkpointing=True).fit, model)
    mean = kept(model)
    run = trainer(tmp_path, [callback])
    warned(lambda: run.fit(model, ckpt_path=tmp_path / "step=6.ckpt"))
    same(model.state_dict(), mean)


def test_a_checkpoint_of_a_run_that_was_done_still_gives_the_model_the_mean(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    callback, model = SWACallback(0.5, 2), Digits()
    warned(trainer(tmp_path, [callback, saving], enable_checkpointing=True).fit, model)
    again, other = SWACallback(0.5, 2), Digits()
    run = trainer(tmp_path, [again])
    warned(lambda: run.fit(other, ckpt_path=tmp_path / "step=12.ckpt"))
    assert other.seen["train"] == []
    same(other.state_dict(), model.state_dict())
    again.swa.swap()
    same(other.state_dict(), by_hand(12, 0.9)[1][-1])


def test_a_checkpoint_of_a_run_that_was_done_does_not_get_the_mean_of_another(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    trainer(tmp_path, [saving], enable_checkpointing=True).fit(Digits())
    callback, model = SWACallback(4, 2), Digits()
    warned(trainer(tmp_path, [callback], max_epochs=1).fit, model)
    run = trainer(tmp_path, [callback])
    told = warned(lambda: run.fit(model, ckpt_path=tmp_path / "step=12.ckpt"))
    assert "Nothing was averaged" in told
    same(model.state_dict(), by_hand(12, 0.9)[1][-1])


def test_a_checkpoint_of_a_run_that_was_done_is_evaluated_with_its_average(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    trainer(tmp_path, [EMACallback(0.9), saving], enable_checkpointing=True).fit(Digits())
    ema, model = EMACallback(0.9), Digits()
    run = trainer(tmp_path, [ema])
    run.fit(model, ckpt_path=tmp_path / "step=12.ckpt")
    run.test(model, verbose=False)
    assert torch.equal(model.seen["test"][-1], by_hand(12, 0.9)[0][-1]["net.0.weight"])


def test_a_fit_of_another_model_leaves_the_mean_in_the_first(tmp_path):
    callback, first = SWACallback(4, 2), Digits()
    warned(trainer(tmp_path, [callback]).fit, first)
    mean = kept(first)
    warned(trainer(tmp_path, [callback]).fit, Digits())
    same(first.state_dict(), mean)


def test_a_copy_of_a_model_that_has_the_mean_is_a_model_of_its_own(tmp_path):
    callback, model = SWACallback(4, 2), Digits()
    warned(trainer(tmp_path, [callback]).fit, model)
    mean = kept(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        same(copied.state_dict(), mean)
        copied.load_state_dict(Digits().state_dict())
        same(model.state_dict(), mean)
    assert callback.swa.is_swapped


def test_a_rate_without_a_state_is_that_of_the_step(tmp_path):
    saving = saving_every(5, tmp_path)
    trainer(tmp_path, [saving], enable_checkpointing=True).fit(Alike())
    model = rates_of(Alike())
    callback = SWACallback(2, 2, lr=0.01, lr_low=0.001, swap=False)
    run = trainer(tmp_path, [callback])
    warned(lambda: run.fit(model, ckpt_path=tmp_path / "step=5.ckpt"))
    # Steps 6 to 12: cycles end with even ones, where weights are averaged.
    assert model.rates == pytest.approx([0.001, *[0.0055, 0.001] * 3])


def test_there_may_be_one_rate_and_several_low_ones():
    SWACallback(0, 2, lr=0.1, lr_low=[0.01, 0.02])
    with pytest.raises(RequestError, match="one for each parameter group"):
        SWACallback(0, 2, lr=[])


def test_averaged_statistics_are_not_warned_of(tmp_path):
    assert "update_bn" not in warned(
        trainer(tmp_path, [SWACallback(4, 2, buffers="average")]).fit, Digits()
    )
