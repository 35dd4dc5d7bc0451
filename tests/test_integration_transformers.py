"""The callbacks in real runs of the Trainer of transformers, with models made from a config."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel

from swavg.errors import InputError, RequestError
from swavg.series.inside import read_inside
from swavg.training import EMA, save_snapshot

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

from swavg.integrations.transformers import EMACallback, SnapshotCallback, SWACallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers.*"),
]


@pytest.fixture(autouse=True)
def quiet():
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()


def digits(first, count):
    """Images of 8 x 8 pixels as sequences of their brightness."""
    images, labels = load_digits(return_X_y=True)
    return [
        {"input_ids": torch.tensor(image[::4]).long(), "labels": torch.tensor(label)}
        for image, label in zip(images[first : first + count], labels[first:], strict=False)
    ]


class Noting(TrainerCallback):
    """Notes the weights at the events of a run."""

    def __init__(self):
        self.trained, self.evaluated = {}, []

    def on_step_end(self, args, state, control, model, **_):
        self.trained[state.global_step] = weights(model)

    def on_prediction_step(self, args, state, control, model, **_):
        self.evaluated.append((state.global_step, weights(model)))


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=16, num_labels=10,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def trainer(folder, callbacks=(), model=None, ema=None, **more):
    defaults = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    data = more.pop("eval_dataset", digits(100, 16))
    run = Trainer(
        bert() if model is None else model,
        TrainingArguments(**(defaults | more)),
        train_dataset=digits(0, 48),
        eval_dataset=data,
        callbacks=list(callbacks),
    )
    if ema is not None:
        ema.attach(run)
    return run


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def averages(noting, decay, upto=None):
    """The EMA over the noted weights, step by step."""
    model = bert()
    ema = EMA(model, decay)
    found = {}
    for step in sorted(noting.trained):
        model.load_state_dict(noting.trained[step])
        ema.update()
        found[step] = ema.averaged()
    return found


def test_evaluation_sees_the_averages_and_training_its_own_weights(tmp_path):
    plain = Noting()
    trainer(tmp_path, [plain]).train()
    noting, ema = Noting(), EMACallback(0.9)
    run = trainer(tmp_path, [noting], ema=ema, eval_strategy="steps", eval_steps=3)
    run.train()
    assert noting.trained.keys() == set(range(1, 13))
    for step, found in noting.trained.items():
        same(found, plain.trained[step])
    expected = averages(plain, 0.9)
    # Two batches each.
    assert [step for step, _ in noting.evaluated] == [3, 3, 6, 6, 9, 9, 12, 12]
    for step, found in noting.evaluated:
        same(found, expected[step])
    same(ema.ema.averaged(), expected[12])
    same(weights(run.model), plain.trained[12])


def test_all_of_several_data_sets_see_the_averages_and_so_do_calls_by_hand(tmp_path):
    noting, ema = Noting(), EMACallback(0.9)
    data = {"a": digits(100, 8), "b": digits(110, 8)}
    run = trainer(tmp_path, [noting], ema=ema, eval_strategy="epoch", eval_dataset=data)
    run.train()
    expected = averages(noting, 0.9)
    assert [step for step, _ in noting.evaluated] == [6, 6, 12, 12]
    metrics = run.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= metrics.keys()
    run.predict(digits(100, 8))
    for step, found in noting.evaluated:
        same(found, expected[step])
    assert len(noting.evaluated) == 7
    same(weights(run.model), noting.trained[12])


def test_only_optimizer_steps_count_while_gradients_accumulate(tmp_path):
    noting, ema = Noting(), EMACallback(0.9)
    trainer(tmp_path, [noting], ema=ema, gradient_accumulation_steps=3).train()
    assert noting.trained.keys() == {1, 2, 3, 4}
    assert ema.ema.num_updates == 4
    same(ema.ema.averaged(), averages(noting, 0.9)[4])


def test_the_averages_lie_beside_the_checkpoints_and_load_into_the_model(tmp_path):
    noting, ema = Noting(), EMACallback(0.9)
    trainer(tmp_path, [noting], ema=ema, save_strategy="steps", save_steps=5).train()
    expected = averages(noting, 0.9)
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        found = safetensors.torch.load_file(folder / "ema.safetensors")
        same(found, expected[step])
        bert().load_state_dict(found, strict=True)
        own = safetensors.torch.load_file(folder / "model.safetensors")
        assert torch.equal(own["classifier.weight"], noting.trained[step]["classifier.weight"])
        inside = read_inside(str(folder / "ema.safetensors"))
        assert inside.averaged
        assert inside.counts == {"step": step}


@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_is_resumed_equals_one_without_interruption(named, tmp_path):
    options = {"decay": 0.9, "warmup": "inverse-gamma", "every": 2}
    whole = EMACallback(**options)
    run = trainer(tmp_path / "a", ema=whole, model=bert(), save_strategy="steps", save_steps=5)
    run.train()
    second = EMACallback(**options)
    saved = tmp_path / "a" / "checkpoint-5"
    if named:
        # Somewhere else, so that it must be the folder that was named.
        saved = saved.rename(tmp_path / "elsewhere")
    for later in ("checkpoint-10", "checkpoint-12"):
        subprocess.run(["rm", "-r", str(tmp_path / "a" / later)], check=True)
    resumed = trainer(tmp_path / "a", ema=second)
    resumed.train(resume_from_checkpoint=str(saved) if named else True)
    assert resumed.state.global_step == 12
    same(weights(resumed.model), weights(run.model))
    same(second.ema.averaged(), whole.ema.averaged())
    assert second.ema.num_updates == whole.ema.num_updates == 6


def test_a_checkpoint_without_an_average_is_an_error_unless_a_new_one_is_wanted(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=5, max_steps=5).train()
    with pytest.raises(
        InputError, match=r"ema\.safetensors: no such file.*EMACallback\(\.\.\., start_anew=True\)"
    ):
        trainer(tmp_path, ema=EMACallback(0.9)).train(resume_from_checkpoint=True)
    ema = EMACallback(0.9, start_anew=True)
    trainer(tmp_path, ema=ema).train(resume_from_checkpoint=True)
    assert ema.ema.num_updates == 7


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "holds no average that can be continued"),
        ("{", "broken"),
        ('{"averages": ["x"]}', "'x'"),
    ],
)
def test_a_file_that_is_no_state_of_an_ema_is_named(state, words, tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=5, max_steps=5).train()
    path = tmp_path / "checkpoint-5" / "ema.safetensors"
    save_snapshot(path, bert(), metadata=None if state is None else {"ema_state": state})
    with pytest.raises(InputError, match=rf"ema\.safetensors: .*{words}"):
        trainer(tmp_path, ema=EMACallback(0.9)).train(resume_from_checkpoint=True)


def test_tied_weights_stay_tied_and_are_averaged_once(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=17, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    )
    data = [{"input_ids": each["input_ids"], "labels": each["input_ids"]} for each in digits(0, 16)]
    ema = EMACallback(0.5)
    run = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=4, save_steps=2, report_to=[], disable_tqdm=True,
            use_cpu=True, per_device_train_batch_size=4, dataloader_pin_memory=False,
        ),
        train_dataset=data,
    )  # fmt: skip
    ema.attach(run)
    run.train()
    assert model.lm_head.weight is model.transformer.wte.weight
    found = safetensors.torch.load_file(tmp_path / "checkpoint-4" / "ema.safetensors")
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])
    again = EMACallback(0.5)
    resumed = Trainer(model, run.args, train_dataset=data)
    again.attach(resumed)
    resumed.args.max_steps = 4
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    same(again.ema.averaged(), found)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "swavg", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_the_command_line_still_takes_the_training_weights_of_a_checkpoint(tmp_path):
    run = trainer(tmp_path, ema=EMACallback(0.9), save_strategy="steps", save_steps=6)
    run.train()
    listed = json.loads(command("list", tmp_path, "--json"))
    assert [os.path.basename(each["path"]) for each in listed["checkpoints"]] == [
        "checkpoint-6", "checkpoint-12",
    ]  # fmt: skip
    command("average", tmp_path, "--last", "2", "-o", tmp_path / "out.safetensors")
    names = ("checkpoint-6", "checkpoint-12")
    one, other = (safetensors.torch.load_file(tmp_path / n / "model.safetensors") for n in names)
    found = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert torch.equal(
        found["classifier.weight"],
        ((one["classifier.weight"].double() + other["classifier.weight"].double()) / 2).float(),
    )


def test_snapshots_of_the_averages_have_what_was_measured_on_them(tmp_path):
    folder = tmp_path / "snapshots"
    noting, ema = Noting(), EMACallback(0.9)
    keeping = SnapshotCallback(folder, every=2, keep=2, best=1, metric="eval_loss", ema=ema)
    run = trainer(tmp_path, [noting, keeping], ema=ema, eval_strategy="steps", eval_steps=4)
    run.train()
    expected = averages(noting, 0.9)
    logged = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = min(logged, key=logged.get)
    listed = json.loads(command("list", folder, "--json"))
    assert {each["step"] for each in listed["checkpoints"]} == {best, 10, 12}
    for each in listed["checkpoints"]:
        same(safetensors.torch.load_file(each["path"]), expected[each["step"]])
        step = each["step"]
        assert each["metrics"] == ({"eval_loss": logged[step]} if step in logged else {})


def test_the_last_snapshot_is_of_the_last_step_though_the_best_model_is_loaded(tmp_path):
    noting = Noting()
    keeping = SnapshotCallback(tmp_path / "snapshots", every=4)
    run = trainer(
        tmp_path / "run", [noting, keeping], eval_strategy="steps", save_strategy="steps",
        eval_steps=4, save_steps=4, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=True,
    )  # fmt: skip
    run.train()
    for step in (4, 8, 12):
        path = tmp_path / "snapshots" / f"step-{step}.safetensors"
        same(safetensors.torch.load_file(path), noting.trained[step])
        assert read_inside(str(path)).metrics.keys() == {"eval_loss"}
    assert run.state.best_global_step == 4
    same(weights(run.model), noting.trained[4])


def test_snapshots_after_each_evaluation_even_at_the_end_of_an_epoch(tmp_path):
    keeping = SnapshotCallback(tmp_path / "snapshots")
    trainer(tmp_path, [keeping], eval_strategy="epoch").train()
    assert [path.name for path in keeping.snapshots.paths] == [
        "step-6.safetensors", "step-12.safetensors",
    ]  # fmt: skip
    for path in keeping.snapshots.paths:
        assert read_inside(str(path)).metrics.keys() == {"eval_loss"}


def test_an_error_in_evaluation_leaves_the_training_weights(tmp_path):
    class Failing(Noting):
        def on_prediction_step(self, *args, **_):
            raise ValueError("no data")

    noting = Failing()
    run = trainer(tmp_path, [noting], ema=EMACallback(0.9), eval_strategy="steps", eval_steps=2)
    with pytest.raises(ValueError, match="no data"):
        run.train()
    same(weights(run.model), noting.trained[2])


def test_training_weights_do_not_get_the_metrics_of_the_averages(tmp_path):
    keeping = SnapshotCallback(tmp_path / "a", every=6)
    run = trainer(tmp_path, [keeping], ema=EMACallback(0.9), eval_strategy="steps", eval_steps=6)
    run.train()
    assert [dict(read_inside(str(path)).metrics) for path in keeping.snapshots.paths] == [{}, {}]
    deciding = SnapshotCallback(tmp_path / "b", every=6, best=1, metric="eval_loss")
    with pytest.raises(RequestError, match="cannot be told"):
        trainer(tmp_path, [deciding], ema=EMACallback(0.9)).train()


def test_misuse_is_named(tmp_path):
    with pytest.raises(RequestError, match="attach"):
        trainer(tmp_path, [EMACallback(0.9)]).train()
    loose = EMACallback(0.9, evaluate=False)
    trainer(tmp_path, [loose], max_steps=1).train()
    assert loose.ema.num_updates == 1
    ema = EMACallback(0.9)
    run = trainer(tmp_path, ema=ema)
    with pytest.raises(RequestError, match="attached already"):
        ema.attach(run)
    with pytest.raises(RequestError, match="Two EMACallbacks"):
        EMACallback(0.99).attach(run)


def test_any_module_will_do(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

        def forward(self, input_ids, labels=None):
            logits = self.body(input_ids.float() / 16)
            return nn.functional.cross_entropy(logits, labels), logits

    ema = EMACallback(0.9)
    run = trainer(tmp_path, model=Net(), ema=ema, save_strategy="epoch")
    run.train()
    found = safetensors.torch.load_file(tmp_path / "checkpoint-12" / "ema.safetensors")
    same(found, ema.ema.averaged())
    assert found["body.1.num_batches_tracked"] == 12


# ---- The running mean.


def mean_of(noting, steps):
    """torch's own running mean of the noted weights."""
    model = bert()
    averaged = AveragedModel(model)
    for step in steps:
        model.load_state_dict(noting.trained[step])
        averaged.update_parameters(model)
    return averaged.module.state_dict()


class Rates(TrainerCallback):
    """Notes the rate of each optimizer step; comes after the callback that sets it."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **_):
        self.found.append(optimizer.param_groups[0]["lr"])


@pytest.mark.filterwarnings("ignore:start=. are optimizer steps")
@pytest.mark.parametrize(
    ("start", "every", "steps"),
    [(4, 3, [7, 10]), (0.5, 2, [8, 10, 12]), (3, None, [6, 12]), (6, None, [12])],
)
def test_the_mean_is_torchs_and_the_model_has_it_when_training_ends(start, every, steps, tmp_path):
    noting, swa = Noting(), SWACallback(start, every)
    run = trainer(tmp_path, [noting, swa], eval_strategy="steps", eval_steps=6)
    run.train()
    expected = mean_of(noting, steps)
    same(weights(run.model), expected)
    # During training evaluations are of the training weights, after it of the mean.
    for step, found in noting.evaluated:
        same(found, noting.trained[step])
    noting.evaluated.clear()
    run.evaluate()
    same(noting.evaluated[-1][1], expected)
    swa.swa.swap()
    same(weights(run.model), noting.trained[12])


def test_accumulated_batches_are_one_step_of_the_mean(tmp_path):
    noting, swa = Noting(), SWACallback(1, 2, swap=False)
    run = trainer(tmp_path, [noting, swa], gradient_accumulation_steps=3)
    run.train()
    same(swa.swa.averaged(), noting.trained[3])
    same(weights(run.model), noting.trained[4])


def test_from_the_start_on_the_rate_is_that_of_the_averaging(tmp_path):
    swa, rates = SWACallback(4, 2, lr=0.004, anneal_steps=2, anneal="linear"), Rates()
    trainer(tmp_path, [swa, rates], lr_scheduler_type="linear").train()
    own = [0.01 * (1 - i / 12) for i in range(4)]
    first = 0.01 * (1 - 4 / 12)
    assert rates.found == pytest.approx([*own, (first + 0.004) / 2, *[0.004] * 7])


@pytest.mark.filterwarnings("ignore:start=. are optimizer steps")
@pytest.mark.parametrize("every", [2, None])
@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_mean_that_is_resumed_equals_one_without_interruption(step, every, tmp_path):
    def averaging():
        return SWACallback(4, every, lr=0.005, anneal_steps=6, swap=False)

    saving = {"save_strategy": "steps", "save_steps": step}
    whole, uninterrupted = averaging(), Noting()
    trainer(tmp_path / "a", [whole, uninterrupted], **saving).train()
    saved = (tmp_path / "a" / f"checkpoint-{step}").rename(tmp_path / "elsewhere")
    second, resumed = averaging(), Noting()
    run = trainer(tmp_path / "b", [resumed])
    second.attach(run)
    run.train(resume_from_checkpoint=str(saved))
    same(resumed.trained[12], uninterrupted.trained[12])
    assert second.swa.n == whole.swa.n
    same(second.swa.averaged(), whole.swa.averaged())


def test_the_mean_beside_a_checkpoint_is_one_that_the_command_line_continues(tmp_path):
    noting, swa = Noting(), SWACallback(2, 2)
    trainer(tmp_path, [noting, swa], save_strategy="steps", save_steps=8).train()
    path = tmp_path / "checkpoint-8" / "swa.safetensors"
    same(safetensors.torch.load_file(path), mean_of(noting, [4, 6, 8]))
    assert read_inside(str(path)).averaged
    new = save_snapshot(tmp_path / "new.safetensors", noting.trained[10], step=10)
    out = tmp_path / "updated.safetensors"
    subprocess.run([sys.executable, "-m", "swavg", "update", path, new, "-o", out], check=True)
    found, expected = safetensors.torch.load_file(out), mean_of(noting, [4, 6, 8, 10])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])


def test_a_checkpoint_without_a_mean_is_refused_unless_it_starts_anew(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=6).train()
    saved = str(tmp_path / "checkpoint-6")
    with pytest.raises(InputError, match="no such file"):
        trainer(tmp_path, [SWACallback(2, 2)]).train(resume_from_checkpoint=saved)
    noting, swa = Noting(), SWACallback(2, 2, start_anew=True)
    trainer(tmp_path, [noting, swa]).train(resume_from_checkpoint=saved)
    same(swa.swa.averaged(), mean_of(noting, [8, 10, 12]))


def test_a_mean_is_attached_once_and_there_is_none_before_training(tmp_path):
    swa = SWACallback(2, 2)
    swa.attach(trainer(tmp_path))
    with pytest.raises(RequestError, match="attached already"):
        swa.attach(trainer(tmp_path))
    with pytest.raises(RequestError, match="no average before training"):
        _ = swa.swa


def test_a_run_from_a_checkpoint_starts_from_its_weights_though_the_model_has_the_mean(tmp_path):
    noting, swa = Noting(), SWACallback(2, 2)
    run = trainer(tmp_path, [noting, swa], save_strategy="steps", save_steps=6)
    run.train()
    mean, trained = weights(run.model), dict(noting.trained)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    same(noting.trained[7], trained[7])
    same(weights(run.model), mean)


def test_the_best_model_has_the_best_checkpoints_averages(tmp_path):
    run = trainer(
        tmp_path,
        [],
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    callback = EMACallback(0.9)
    callback.attach(run)
    run.train()
    best = safetensors.torch.load_file(f"{run.state.best_model_checkpoint}/ema.safetensors")
    found = callback.ema.averaged()
    for name, tensor in best.items():
        assert torch.equal(found[name], tensor), name
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric)
    with pytest.warns(UserWarning, match=r"save_model\(\) wrote the training weights"):
        run.save_model(str(tmp_path / "model"))


def test_the_mean_is_in_the_model_and_the_best_weights_are_what_it_goes_back_to(tmp_path):
    noting, swa = Noting(), SWACallback(4, 2)
    run = trainer(
        tmp_path, [noting, swa], eval_strategy="steps", save_strategy="steps", eval_steps=3,
        save_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_loss",
        greater_is_better=True,
    )  # fmt: skip
    run.train()
    same(weights(run.model), mean_of(noting, [6, 8, 10, 12]))
    swa.swa.swap()
    same(weights(run.model), noting.trained[run.state.best_global_step])


def test_each_training_that_does_not_resume_has_new_averages(tmp_path):
    ema, swa = EMACallback(0.9), SWACallback(4, 2)
    run = trainer(tmp_path, [swa], ema=ema)
    for _ in range(2):
        run.train()
        assert (ema.ema.num_updates, swa.swa.n) == (12, 4)


def test_save_model_says_what_it_wrote_also_during_an_evaluation(tmp_path):
    class Saves(TrainerCallback):
        def on_evaluate(self, args, state, control, **_):
            if state.global_step == 6:
                with pytest.warns(UserWarning, match=r"wrote the averages, which the model has"):
                    run.save_model(str(tmp_path / "shown"))
                run.save_model(str(tmp_path / "checkpoint"), _internal_call=True)

    noting = Noting()
    run = trainer(
        tmp_path, [noting, Saves()], ema=EMACallback(0.9), eval_strategy="steps", eval_steps=6
    )
    run.train()
    expected = {"shown": averages(noting, 0.9)[6], "checkpoint": noting.trained[6]}
    for name, tensors in expected.items():
        for key, tensor in safetensors.torch.load_file(
            tmp_path / name / "model.safetensors"
        ).items():
            assert torch.equal(tensor, tensors[key]), (name, key)
    same(weights(run.model), noting.trained[12])


def test_in_a_block_of_ones_own_save_model_writes_the_averages_and_says_nothing(tmp_path):
    ema = EMACallback(0.9)
    run = trainer(tmp_path, ema=ema)
    run.train()
    with ema.ema.applied():
        run.save_model(str(tmp_path / "averages"))
    found = safetensors.torch.load_file(tmp_path / "averages/model.safetensors")
    average = ema.ema.averaged()
    for name, tensor in found.items():
        assert torch.equal(tensor, average[name]), name
    with pytest.warns(UserWarning, match=r"with callback\.ema\.applied\(\): trainer\.save_model"):
        run.save_model(str(tmp_path / "trained"))


def test_a_start_within_the_first_epoch_is_told_to_be_in_steps(tmp_path):
    swa = SWACallback(2)
    with pytest.warns(
        UserWarning, match="start=2 are optimizer steps, within the first epoch of 6"
    ):
        trainer(tmp_path, [swa]).train()
    assert swa.swa.n == 2


def test_frozen_weights_are_saved_with_no_average(tmp_path):
    run = trainer(tmp_path, [], save_strategy="steps", save_steps=4)
    name, frozen = next(iter(run.model.named_parameters()))
    frozen.requires_grad_(False)
    EMACallback(0.9).attach(run)
    run.train()
    held = safetensors.torch.load_file(tmp_path / "checkpoint-4/ema.safetensors")
    assert name not in held
    assert {each for each, p in run.model.named_parameters() if p.requires_grad} <= held.keys()
