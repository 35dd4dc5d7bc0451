"""Names for what was measured of one checkpoint."""

import pytest
import torch
from checkpoints import load, save, state
from command_line import done
from safetensors import safe_open

from swavg.formats.metrics import is_metric, metrics_among


@pytest.mark.parametrize(
    "name",
    [
        "loss", "val_loss", "val/loss", "best_acc", "best_acc1", "metrics.top1", "metric",
        "valid.wer", "eval_f1", "extra_state.val_loss", "best_fitness", "best_score", "val_mAP",
        "eval_precision", "callbacks.ModelCheckpoint{'monitor': 'x'}.current_score", "best_prec1",
        "test_perplexity",
    ],
)  # fmt: skip
def test_measured(name):
    assert is_metric(name)


@pytest.mark.parametrize(
    "name",
    [
        "step", "epoch", "loss_weight", "ss_loss_type", "precision", "loss_scale", "map",
        "lossless", "hyper_parameters.loss_gamma", "args.loss", "grad_scaler.scale",
        "accelerator", "score_threshold", "format", "seed", "em", "accumulate",
    ],
)  # fmt: skip
def test_not_measured(name):
    assert not is_metric(name)


def test_only_numbers_are_metrics():
    scalars = {"loss": "mse", "val_loss": "0.5", "acc": 1, "best_score": float("nan"), "step": 3}
    assert metrics_among(scalars) == ["val_loss", "acc", "best_score"]


def test_the_metadata_of_an_average_has_no_metric_of_its_last_input(tmp_path):
    for n in (1, 2):
        more = {"val_loss": f"0.{n}", "best_acc": "71.5", "loss_type": "l2", "step": str(n)}
        save(tmp_path / f"s{n}.safetensors", state(n), more)
        save(tmp_path / f"f{n}/model.safetensors", state(n), more)
    done("average", "s1.safetensors", "s2.safetensors", "-o", "o.safetensors", cwd=tmp_path)
    done("average", "f1", "f2", "-o", "f", cwd=tmp_path)
    for path in ("o.safetensors", "f/model.safetensors"):
        with safe_open(tmp_path / path, "pt") as file:
            assert set(file.metadata()) == {"format", "loss_type", "step", "swavg"}


def lightning(n):
    return {
        "epoch": n,
        "global_step": 100 * n,
        "state_dict": state(n),
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val.loss'}": {
                "monitor": "val.loss",
                "current_score": torch.tensor(n / 10),
                "best_model_score": torch.tensor(0.1),
            }
        },
    }


@pytest.mark.parametrize(
    ("make", "listed"),
    [
        (
            lambda n: {"model": state(n), "val_loss": n / 10, "best_acc": 0.5, "epoch": n},
            "'val_loss', 'best_acc'",
        ),
        (lambda n: {"model": state(n), "metrics": {"top1": 70.0 + n}, "arch": "x"}, "'top1'"),
        (lightning, "'current_score', 'best_model_score'"),
    ],
)
def test_a_note_names_the_metrics_that_a_torch_file_keeps_of_its_last_input(tmp_path, make, listed):
    for n in (1, 2):
        torch.save(make(n), tmp_path / f"m{n}.pt")
    told = " ".join(done("average", "m1.pt", "m2.pt", "-o", "o.pt", cwd=tmp_path).stderr.split())
    assert f"note metrics in it are those of m2.pt, the last input: {listed}" in told
    # Nor does the list show them as the average's own.
    assert '"metrics": {}' in done("list", "o.pt", "--json", cwd=tmp_path).stdout
    told = done("average", "m1.pt", "m2.pt", "-o", "o.safetensors", cwd=tmp_path)
    assert "metrics in it" not in told.stderr
    assert load(tmp_path / "o.safetensors").keys() == state(1).keys()


def test_what_a_trainer_logged_is_not_copied_and_gives_an_average_no_metric(tmp_path):
    for n in (1, 2):
        save(tmp_path / f"checkpoint-{n}/model.safetensors", state(n))
        for name in ("trainer_state.json", "all_results.json", "config.json", "tokenizer.json"):
            history = f'{{"log_history": [{{"step": {n}, "eval_loss": 0.5}}], "global_step": {n}}}'
            (tmp_path / f"checkpoint-{n}" / name).write_text(history)
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
            (tmp_path / f"checkpoint-{n}" / name).write_bytes(b"x")
    told = done("average", "checkpoint-1", "checkpoint-2", "-o", "averaged-2", cwd=tmp_path)
    left = {path.name for path in (tmp_path / "averaged-2").iterdir()}
    assert left == {"config.json", "tokenizer.json", "model.safetensors"}
    assert "trainer_state.json" in " ".join(told.stderr.split())
    # As an average of before has it.
    (tmp_path / "averaged-2/trainer_state.json").write_text(history)
    assert '"metrics": {}' in done("list", "averaged-2", "--json", cwd=tmp_path).stdout
    done("average", "checkpoint-1", "checkpoint-2", "-o", "averaged-2", "--force", cwd=tmp_path)
    assert not (tmp_path / "averaged-2/trainer_state.json").exists()


def test_a_bool_is_no_metric():
    assert metrics_among({"is_best_acc": True, "best_acc": 0.5}) == ["best_acc"]


def test_a_note_names_the_hashes_that_a_torch_file_keeps_too(tmp_path):
    for n in (1, 2):
        content = {"model": state(n), "sha256": "ab" * 32, "git_hash": "c0ffee"}
        torch.save(content, tmp_path / f"m{n}.pt")
    told = done("average", "m1.pt", "m2.pt", "-o", "o.pt", cwd=tmp_path).stderr
    assert "note hashes in it are those of m2.pt, the last input: 'sha256'\n" in told
    told = done("average", "m1.pt", "m2.pt", "-o", "o.safetensors", cwd=tmp_path).stderr
    assert "hashes" not in told
