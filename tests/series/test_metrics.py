"""Metrics: from names, from what trainers write, from a file; and the best by them."""

import json
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from checkpoints import save, state

from swavg.errors import InputError, RequestError
from swavg.series import (
    Selection,
    Series,
    Snapshot,
    discover,
    guess_mode,
    select,
    with_inner_metrics,
)
from swavg.series.names import read_name


def torch_file(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return str(path)


def by_step(series, metric):
    return {snapshot.step: snapshot.metrics.get(metric) for snapshot in series.snapshots}


def measured(**values):
    """A series with one metric, whose values are given by path."""
    return Series(
        tuple(
            Snapshot(path, i, {} if value is None else {"val_loss": value})
            for i, (path, value) in enumerate(values.items())
        ),
        (),
        "step",
    )


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("epoch=3-step=1200-val_loss=0.123.ckpt", {"val_loss": 0.123}),
        ("epoch=3-val_loss=0.12-val_acc=0.91.ckpt", {"val_loss": 0.12, "val_acc": 0.91}),
        ("epoch=3_val_loss=0.2.ckpt", {"val_loss": 0.2}),
        ("val_loss=1.5e-03.pt", {"val_loss": 0.0015}),
        ("step=5-reward=-12.5.pt", {"reward": -12.5}),
        ("epoch=3-val_loss=0.5-v1.ckpt", {"val_loss": 0.5}),
        ("epoch_7_loss_0.25.pt", {"loss": 0.25}),
        ("checkpoint.best_bleu_30.12.pt", {"bleu": 30.12}),
        ("valid.acc_0.91.pth", {"valid.acc": 0.91}),
        ("lr=0.001-step=5.pt", {}),
        ("resnet50_epoch7.pt", {}),
        ("loss_step_100.pt", {}),
    ],
)
def test_a_name_says_its_metrics(name, metrics):
    assert dict(read_name(name).metrics) == metrics


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"), ("loss", "min"), ("eval_ppl", "min"), ("valid.cer", "min"),
        ("dev/wer", "min"), ("cv_loss", "min"), ("valloss", "min"), ("val_acc", "max"),
        ("eval_accuracy", "max"), ("bleu", "max"), ("eval_f1", "max"), ("top1", "max"),
        ("mAP", "max"), ("metric", None), ("map_error", None), ("speed", None),
        ("neg_log_loss", None), ("neg-MSE", None), ("negative_loss", None), ("nll", "min"),
    ],
)  # fmt: skip
def test_a_metric_says_whether_lower_is_better_or_not(metric, mode):
    assert guess_mode(metric) == mode


def test_hugging_face_metrics_come_from_the_newest_trainer_state(tmp_path):
    log = []
    for step in (500, 1000, 1500):
        save(tmp_path / f"checkpoint-{step}/model.safetensors", state(step))
        torch.save({}, tmp_path / f"checkpoint-{step}/optimizer.pt")
        log += [
            {"step": step, "epoch": 1.0, "loss": 2.0, "learning_rate": 1e-4},
            {"step": step, "eval_loss": 1.0 / step, "eval_runtime": 3.0},
        ]
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(
            json.dumps({"global_step": step, "log_history": log})
        )
    (tmp_path / "checkpoint-500/trainer_state.json").write_text("{ broken")
    series = discover([tmp_path])
    assert by_step(series, "eval_loss") == {500: 1 / 500, 1000: 1 / 1000, 1500: 1 / 1500}
    assert series.metric_names == ("eval_loss",)
    assert select(series, Selection(best=2, metric="eval_loss")).steps == (1000, 1500)


def test_a_folder_without_a_step_in_its_name_has_that_of_its_trainer_state(tmp_path):
    save(tmp_path / "out/model.safetensors", state(1))
    (tmp_path / "out/trainer_state.json").write_text('{"global_step": 70}')
    (snapshot,) = discover([tmp_path / "out"]).snapshots
    assert (snapshot.step, snapshot.step_from) == (70, "file")


def lightning(path, step, score):
    callback = {
        "monitor": "val_loss",
        "best_model_score": torch.tensor(0.1),
        "current_score": torch.tensor(score),
        "best_k_models": {"x.ckpt": torch.tensor(0.1)},
    }
    return torch_file(
        path,
        {
            "epoch": step // 100,
            "global_step": step,
            "state_dict": state(step),
            "optimizer_states": [],
            "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": callback, "Other": {}},
        },
    )


def test_lightning_scores_come_from_the_name_or_the_callback(tmp_path):
    lightning(tmp_path / "epoch=1-step=100.ckpt", 100, 0.5)
    lightning(tmp_path / "epoch=2-step=200.ckpt", 200, 0.25)
    lightning(tmp_path / "epoch=3-step=300-val_loss=0.40.ckpt", 300, 9.0)
    lightning(tmp_path / "last.ckpt", 300, 9.0)
    series = discover([tmp_path])
    assert series.steps == (100, 200, 300)
    assert by_step(series, "val_loss") == {100: None, 200: None, 300: 0.4}
    chosen = select(series, Selection(best=2, metric="val_loss"))
    assert by_step(chosen, "val_loss") == {200: 0.25, 300: 0.4}
    assert chosen.notes == (
        "ignored last.ckpt: it is of step 300, as is epoch=3-step=300-val_loss=0.40.ckpt",
    )


def test_timm_metrics_come_from_the_file(tmp_path):
    for epoch, top1 in ((8, 70.0), (9, 72.0), (10, 71.0)):
        content = {
            "epoch": epoch,
            "arch": "resnet50",
            "state_dict": state(epoch),
            "metric": top1,
            "metrics": OrderedDict(top1=top1, loss=1 / top1),
        }
        torch_file(tmp_path / f"checkpoint-{epoch}.pth.tar", content)
    torch_file(tmp_path / "model_best.pth.tar", content | {"epoch": 9})
    series = discover([tmp_path])
    assert (series.unit, series.steps) == ("epoch", (8, 9, 10))
    assert select(series, Selection(best=2, metric="top1")).steps == (9, 10)
    assert select(series, Selection(best=1, metric="metric", mode="max")).steps == (9,)
    with pytest.raises(RequestError, match=r"lower or higher metric better.*mode="):
        select(series, Selection(best=1, metric="metric"))


def test_fairseq_counts_updates_and_keeps_its_loss_inside(tmp_path):
    def fairseq(name, epoch, updates, loss):
        extra = {"val_loss": loss, "best": 1.0, "train_iterator": {"epoch": epoch}}
        history = [{"num_updates": updates, "optimizer_name": "FairseqAdam"}]
        content = {"model": state(updates), "extra_state": extra, "optimizer_history": history}
        torch_file(tmp_path / name, content)

    fairseq("checkpoint_1_500.pt", 1, 500, 4.0)
    fairseq("checkpoint1.pt", 1, 800, 3.0)
    fairseq("checkpoint_2_1000.pt", 2, 1000, 3.5)
    fairseq("checkpoint_last.pt", 2, 1000, 3.5)
    series = discover([tmp_path])
    assert (series.unit, series.steps) == ("step", (500, 800, 1000))
    assert select(series, Selection(best=1, metric="val_loss")).steps == (800,)


def test_epochs_and_the_updates_within_them_are_in_order_without_a_look_inside(tmp_path):
    for name in ("checkpoint2.pt", "checkpoint1.pt", "checkpoint_2_900.pt", "checkpoint_1_500.pt"):
        (tmp_path / name).write_bytes(b"x")
    series = discover([tmp_path], read_inside=False)
    assert [Path(path).name for path in series.paths] == [
        "checkpoint_1_500.pt", "checkpoint1.pt", "checkpoint_2_900.pt", "checkpoint2.pt",
    ]  # fmt: skip


def test_wenet_losses_come_from_the_yaml_beside(tmp_path):
    for epoch, loss in ((0, 9.5), (1, 5.25), (12, 6.0)):
        torch_file(tmp_path / f"{epoch}.pt", state(epoch))
        (tmp_path / f"{epoch}.yaml").write_text(
            f"accum_grad: 4\nconfig:\n- a\n- b\ncv_loss: {loss}\nepoch: {epoch}\n"
            "loss_dict:\n  acc: 0.5\nlr: 0.001\nname: conformer\n"
        )
    torch_file(tmp_path / "init.pt", state(0))
    series = discover([tmp_path])
    assert by_step(series, "cv_loss") == {0: 9.5, 1: 5.25, 12: 6.0}
    assert series.snapshots[-1].metrics["acc"] == 0.5
    chosen = select(series, Selection(best=2, metric="cv_loss"))
    assert chosen.steps == (1, 12)
    assert chosen.notes[-1].startswith("ignored init.pt: by name")


def test_espnet_metrics_come_from_the_reporter(tmp_path):
    stats = {}
    for epoch, acc in ((1, 0.5), (2, 0.7), (3, 0.6)):
        torch_file(tmp_path / f"{epoch}epoch.pth", state(epoch))
        stats[epoch] = {"train": {"loss": 1.0}, "valid": {"acc": acc, "loss": 1 - acc}}
    reporter = {"epoch": 3, "stats": stats}
    torch_file(tmp_path / "checkpoint.pth", {"model": state(3), "reporter": reporter})
    (tmp_path / "valid.acc.best.pth").symlink_to("2epoch.pth")
    series = discover([tmp_path])
    assert (series.unit, series.steps) == ("epoch", (1, 2, 3))
    assert by_step(series, "valid.acc") == {1: 0.5, 2: 0.7, 3: 0.6}
    assert select(series, Selection(best=2, metric="valid.acc")).steps == (2, 3)


def test_metrics_in_the_metadata_of_swavg_count(tmp_path):
    recipe = json.dumps({"step": 5, "metrics": {"acc": 0.5}})
    save(tmp_path / "a.safetensors", state(1), {"swavg": recipe})
    series = with_inner_metrics(discover([tmp_path / "a.safetensors"]))
    assert (series.steps, dict(series.snapshots[0].metrics)) == ((5,), {"acc": 0.5})


@pytest.mark.parametrize(
    "content",
    [
        {"callbacks": {"a": {"monitor": 3, "current_score": torch.tensor([1.0, 2.0])}}},
        {"callbacks": [1], "metrics": 7, "extra_state": None, "optimizer_history": [None]},
        {"global_step": float("nan"), "epoch": -1, "metric": True},
        {"global_step": "many", "reporter": {"stats": [1]}},
        {"callbacks": {"a": {"monitor": "x", "current_score": torch.zeros(0)}}},
        {"extra_state": {"train_iterator": [1]}, "step": 1.5},
    ],
)
def test_odd_content_is_passed_over(tmp_path, content):
    path = torch_file(tmp_path / "a.pt", {"model": state(1), **content})
    series = with_inner_metrics(discover([path]))
    assert (series.steps, dict(series.snapshots[0].metrics)) == ((None,), {})


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", '{"log_history": 3}', '{"log_history": [1, {"step": "x"}]}', "\xff"]
)
def test_an_odd_trainer_state_is_passed_over(tmp_path, text):
    save(tmp_path / "checkpoint-5/model.safetensors", state(1))
    (tmp_path / "checkpoint-5/trainer_state.json").write_bytes(text.encode("latin-1"))
    assert discover([tmp_path]).metric_names == ()


def run(folder, *steps):
    for step in steps:
        (Path(folder) / f"step_{step}.pt").write_bytes(b"x")
    return folder


TABLES = [
    ("m.csv", "step,val_loss,note\n10,0.5,a\n20,0.25,b\n"),
    ("m.csv", "epoch,step,val_loss\n1,10,0.5\n1,20,\n1,20,0.25\n"),
    ("m.tsv", "step\tval_loss\n10\t0.5\n20\t0.25\n"),
    ("m.csv", "path,val_loss\nstep_10.pt,0.5\nstep_20,0.25\n"),
    ("m.jsonl", '{"step": 10, "val_loss": 0.5}\n\n{"step": 20, "val_loss": 0.25}\n'),
    ("m.json", '[{"global_step": 10, "val_loss": 0.5}, {"global_step": 20, "val_loss": 0.25}]'),
    ("m.json", '{"log_history": [{"step": 10, "val_loss": 0.5}, {"step": 20, "val_loss": 0.25}]}'),
    ("m.csv", "\ufeffstep,val_loss\r\n10,0.5\r\n20,0.25\r\n"),
]


@pytest.mark.parametrize(("name", "text"), TABLES)
def test_a_file_of_metrics_is_matched_by_step_or_path(tmp_path, name, text):
    run(tmp_path, 10, 20)
    table = tmp_path / name
    table.write_bytes(text.encode())
    series = discover([tmp_path], metrics_file=table)
    assert by_step(series, "val_loss") == {10: 0.5, 20: 0.25}
    assert series.notes == ()


def test_step_10_does_not_get_the_metric_of_step_100(tmp_path):
    run(tmp_path, 10, 100)
    (tmp_path / "m.csv").write_text("step,acc\n100,1\n")
    series = discover([tmp_path], metrics_file=tmp_path / "m.csv")
    assert by_step(series, "acc") == {10: None, 100: 1.0}
    assert series.notes == ("m.csv has no row for step_10.pt",)


def test_a_log_that_counts_steps_from_0_is_understood_and_said(tmp_path):
    run(tmp_path, 100, 200)
    (tmp_path / "metrics.csv").write_text("step,val_loss\n99,0.5\n199,0.25\n")
    series = discover([tmp_path], metrics_file=tmp_path / "metrics.csv")
    assert by_step(series, "val_loss") == {100: 0.5, 200: 0.25}
    assert series.notes == ("metrics.csv counts steps from 0: one was added to each",)


def test_a_log_that_seems_to_count_epochs_from_0_and_names_from_1_is_refused(tmp_path):
    """As of Keras: the row of epoch 1 is of the second epoch, and epoch_02 its checkpoint."""
    for epoch in (1, 2, 3):
        save(tmp_path / f"epoch_0{epoch}.safetensors", state(epoch))
    log = tmp_path / "log.csv"
    log.write_text("epoch,val_loss\n0,3\n1,1\n2,2\n")
    with pytest.raises(InputError, match="epochs from 0 to 2, the checkpoints 1 to 3") as caught:
        discover([tmp_path], metrics_file=log)
    assert "a column 'path'" in (caught.value.hint or "")
    log.write_text("path,val_loss\nepoch_01,3\nepoch_02,1\nepoch_03,2\n")
    assert by_step(discover([tmp_path], metrics_file=log), "val_loss") == {1: 3.0, 2: 1.0, 3: 2.0}
    # With a row for each, or one that lacks another than the last, it counts as they do.
    for rows in ("0,9\n1,3\n2,1\n3,2\n", "1,3\n2,1\n", "0,9\n1,3\n3,2\n"):
        log.write_text("epoch,val_loss\n" + rows)
        assert by_step(discover([tmp_path], metrics_file=log), "val_loss")[1] == 3.0


def test_a_log_without_any_row_for_a_series_says_what_it_counts(tmp_path):
    run(tmp_path, 10, 20)
    (tmp_path / "log.csv").write_text("epoch,val_loss\n1,0.5\n2,0.25\n")
    series = discover([tmp_path], metrics_file=tmp_path / "log.csv")
    said = ("log.csv has no row for step_10.pt, step_20.pt: it counts epochs, 1 to 2,"
            " and they steps, 10 to 20")  # fmt: skip
    assert series.notes == (said,)
    for metric in ("val_loss", None):
        with pytest.raises(RequestError) as caught:
            select(series, Selection(best=1, metric=metric))
        assert caught.value.hint == f"{said}."
    with pytest.raises(RequestError, match=r"in the names: val_loss=0\.25") as caught:
        select(discover([tmp_path]), Selection(best=1, metric="val_loss"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("step,val_loss\n", "no rows"),
        ("loss,acc\n1,2\n", "no column that says which checkpoint"),
        ("step,loss\n1,2,3\n", "line 2 has 3 fields, the header 2"),
        ("step,loss,loss\n1,2,3\n", "two columns of the same name"),
        ('step,loss\n1,"2\n', "is no CSV"),
        ('{"step": 1}\n{"step": \n', "line 2 is no JSON"),
        ("[1, 2]", "no list of JSON objects"),
        ("\xff\xfe", "byte 0 is not UTF-8"),
    ],
)
def test_a_broken_file_of_metrics_is_an_error(tmp_path, text, problem):
    run(tmp_path, 10)
    (tmp_path / "m").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=problem):
        discover([tmp_path], metrics_file=tmp_path / "m")
    with pytest.raises(InputError, match="no such file"):
        discover([tmp_path], metrics_file=tmp_path / "nowhere")


def test_nan_is_never_the_best(tmp_path):
    for mode in ("min", "max"):
        series = measured(a=math.nan, b=2.0, c=-math.inf, d=1.0, e=math.inf)
        chosen = select(series, Selection(best=2, metric="val_loss", mode=mode))
        assert chosen.paths == ("b", "d")
        assert chosen.notes == ("left out, val_loss is NaN or infinite: a, c, e",)


def test_of_equals_the_newer_is_better():
    chosen = select(measured(a=1.0, b=1.0, c=1.0), Selection(best=2, metric="val_loss"))
    assert chosen.paths == ("b", "c")


def test_those_without_the_metric_are_listed():
    chosen = select(measured(a=1.0, b=None, c=2.0), Selection(best=1, metric="val_loss"))
    assert chosen.paths == ("a",)
    assert chosen.notes == ("left out for want of val_loss: b",)


def test_a_metric_that_none_has_or_that_is_one_of_several_is_an_error():
    with pytest.raises(RequestError, match=r"No checkpoint has a bleu.*There are: val_loss"):
        select(measured(a=1.0), Selection(best=1, metric="bleu", mode="max"))
    with pytest.raises(RequestError, match=r"has a val_los to.*Did you mean 'val_loss'\?"):
        select(measured(a=1.0), Selection(best=1, metric="val_los"))
    several = Series((Snapshot("a", 1, {"x_loss": 1.0, "acc": 2.0}),), (), "step")
    with pytest.raises(RequestError, match="best= needs metric=: there are x_loss, acc"):
        select(several, Selection(best=1))
    with pytest.raises(RequestError, match="none is known"):
        select(Series((Snapshot("a", 1),), (), "step"), Selection(best=1))


def test_a_checkpoint_that_was_opened_for_its_step_is_not_opened_again(tmp_path):
    lightning(tmp_path / "a.ckpt", 100, 0.5)
    series = discover([tmp_path])
    (tmp_path / "a.ckpt").unlink()
    assert by_step(with_inner_metrics(series), "val_loss") == {100: 0.5}
