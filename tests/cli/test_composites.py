"""Folders of parts, from the command line: each part is averaged with its namesakes."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import done, swavg
from composites import (
    deepspeed,
    llama,
    megatron,
    modules,
    pipeline,
    speechbrain,
    values,
    w,
    write,
)

from swavg.formats.parts import open_whole


def two(tmp_path, files, names=("a", "b")):
    for i, name in enumerate(names):
        write(tmp_path / name, files(i))
    return names


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            llama,
            {
                "consolidated.00.pth": 5.0,
                "consolidated.01.pth": 6.0,
                "params.json": b'{"a": 1}',
                "tokenizer.model": b"pieces",
            },
        ),
        (
            megatron,
            {"mp_rank_00/model_optim_rng.pt": 5.0, "mp_rank_01/model_optim_rng.pt": 6.0},
        ),
        (deepspeed, {"mp_rank_00_model_states.pt": 5.0, "mp_rank_01_model_states.pt": 6.0}),
        (
            pipeline,
            {
                "README.md": b"read me",
                "model_index.json": b'{"_class_',
                "tokenizer/vocab.txt": b"words",
                "unet/config.json": b'{"a": 1}',
                "unet/diffusion_pytorch_model.safetensors": 0.5,
                "vae/diffusion_pytorch_model.bin": 100.5,
            },
        ),
        (
            modules,
            {
                "1_Pooling/config.json": b'{"b": 1}',
                "2_Dense/config.json": b'{"c": 1}',
                "2_Dense/model.safetensors": 50.5,
                "config.json": b'{"a": 1}',
                "model.safetensors": 0.5,
                "modules.json": b'[{"path":',
            },
        ),
        (
            lambda i: {f"model_rank{rank}.pt": w(10 * i + rank) for rank in (0, 1, 2)},
            {"model_rank0.pt": 5.0, "model_rank1.pt": 6.0, "model_rank2.pt": 7.0},
        ),
        (
            lambda i: {
                **{f"layer_0{n}-model_00-model_states.pt": w(10 * i + n) for n in (0, 1)},
                "mp_rank_00_model_states.pt": {"module": None, "lr": 1},
            },
            {
                "layer_00-model_00-model_states.pt": 5.0,
                "layer_01-model_00-model_states.pt": 6.0,
                "mp_rank_00_model_states.pt": b"PK\x03\x04\x00\x00\x08\x08\x00",
            },
        ),
        (
            lambda i: {f"checkpoint_{i}_{i}00-shard{n}.pt": w(10 * i + n) for n in (0, 1)},
            {"checkpoint_1_100-shard0.pt": 5.0, "checkpoint_1_100-shard1.pt": 6.0},
        ),
        (
            lambda i: {"model.safetensors": w(i), "model_1.safetensors": w(10 + i)},
            {"model.safetensors": 0.5, "model_1.safetensors": 10.5},
        ),
        (
            lambda i: {"encoder.pt": w(i), "decoder.pt": w(10 + i), "vocab.bin": "words"},
            {"encoder.pt": 0.5, "decoder.pt": 10.5, "vocab.bin": b"words"},
        ),
        (
            lambda i: {"text_encoder.safetensors": w(i), "unet.safetensors": w(10 + i)},
            {"text_encoder.safetensors": 0.5, "unet.safetensors": 10.5},
        ),
        (
            lambda i: {"model/model.safetensors": w(i), "ema/model.safetensors": w(10 + i)},
            {"model/model.safetensors": 0.5, "ema/model.safetensors": 10.5},
        ),
        (
            lambda i: {"checkpoint.pt": w(i), "ema.pt": w(10 + i)},
            {"checkpoint.pt": 0.5, "ema.pt": 10.5},
        ),
        (
            lambda i: {"encoder/model.pt": w(i), "decoder/model.pt": w(10 + i)},
            {"encoder/model.pt": 0.5, "decoder/model.pt": 10.5},
        ),
    ],
)
def test_each_part_is_averaged_with_its_namesake(tmp_path, files, expected):
    a, b = two(tmp_path, files)
    done("average", a, b, "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o") == expected


def test_speechbrain_checkpoints_keep_what_is_no_weight_and_lose_the_optimizer(tmp_path):
    a, b = two(tmp_path, speechbrain, ("CKPT+2024-01-01+12-00-00+00", "CKPT+2024-01-02"))
    run = done("average", a, b, "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o") == {
        "CKPT.yaml": b"# yamllin",
        "brain.ckpt": b"loss: 1\n",
        "counter.ckpt": b"2",
        "model.ckpt": 0.5,
        "normalizer.ckpt": 20.5,
    }
    assert torch.load(tmp_path / "o" / "normalizer.ckpt")["count"] == 1
    said = " ".join(run.stderr.split())
    assert f"copied from {b}, as no weights are in them: brain.ckpt, counter.ckpt" in said
    assert f"not copied from {b}: optimizer.ckpt, opt_class.ckpt" in said
    assert f"metrics in CKPT.yaml are those of {b}" in said
    assert "differ" not in said


def test_weights_belong_to_the_folders_in_the_order_given(tmp_path):
    names = two(tmp_path, lambda i: {"enc.pt": w(i), "dec.pt": w(10 + i)}, ("run-20", "run-10"))
    done("average", *names, "--weights", "0.25", "0.75", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o") == {"dec.pt": 10.75, "enc.pt": 0.75}


@pytest.mark.parametrize(
    ("files", "name", "step"),
    [
        (megatron, "iter_{:07d}", 100),
        (deepspeed, "global_step{}", 100),
        (lambda i: {"unet/diffusion_pytorch_model.safetensors": w(i), "optimizer.bin": {}},
         "checkpoint-{}", 500),
        (pipeline, "checkpoint-{}", 500),
        (lambda i: {"encoder.pt": w(i), "decoder.pt": w(10 + i)}, "epoch_{}", 1),
    ],
)  # fmt: skip
def test_a_run_of_composites_is_a_series(tmp_path, files, name, step):
    for i in range(3):
        write(tmp_path / "run" / name.format(step * (i + 1)), files(i))
    (tmp_path / "run" / "latest").write_text("1")
    listed = json.loads(done("list", "run", "--json", cwd=tmp_path).stdout)["checkpoints"]
    assert [each["step"] for each in listed] == [step, 2 * step, 3 * step]
    assert all(each["size"] for each in listed)
    done("average", "run", "--last", "2", "-o", "o", cwd=tmp_path)
    last, before = (values(tmp_path / "run" / name.format(step * number)) for number in (3, 2))
    made = values(tmp_path / "o")
    assert made
    averaged = {k: v for k, v in made.items() if isinstance(v, float)}
    assert averaged == {k: (last[k] + before[k]) / 2 for k in averaged}
    weights = {k for k, v in last.items() if isinstance(v, float) and "optim" not in k}
    assert weights - {"all_in_one.safetensors"} <= {*averaged} | {"mp_rank_00/model_optim_rng.pt"}


def test_pickles_and_archives_among_the_parts_go_along(tmp_path):
    two(tmp_path, speechbrain)
    for i, name in enumerate("ab"):
        (tmp_path / name / "sampler.ckpt").write_bytes(pickle.dumps({"index": i}))
        with open(tmp_path / name / "statistics.ckpt", "wb") as file:
            np.savez(file, mean=np.full(2, i))
    run = swavg("average", "a", "b", "-o", "out", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert pickle.loads((tmp_path / "out" / "sampler.ckpt").read_bytes()) == {"index": 1}
    assert "copied from b, as no weights are in them" in run.stderr


def test_speechbrain_runs_have_epochs_and_metrics(tmp_path):
    for i in range(3):
        write(tmp_path / "save" / f"CKPT+2024-01-0{i + 1}+12-00-00+00", speechbrain(i))
    listed = json.loads(done("list", "save", "--json", cwd=tmp_path).stdout)
    assert listed["unit"] == "epoch"
    assert [(s["step"], s["metrics"]) for s in listed["checkpoints"]] == [
        (i + 1, {"WER": 9.0 - i}) for i in range(3)
    ]
    done("average", "save", "--best", "2", "--metric", "WER", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o")["model.ckpt"] == 1.5
    # An average has no metrics of its own.
    shown = json.loads(done("list", "o", "--json", cwd=tmp_path).stdout)
    assert shown["checkpoints"][0]["metrics"] == {}


def test_rows_times_parts(tmp_path):
    for i in range(3):
        write(tmp_path / "run" / f"step_{i}", {"a.pt": w(i), "b.pt": w(10 * i)})
    recipes = ("-r", "uniform:last=2", "-r", "ema:decay=0.5")
    run = done("sweep", "run", *recipes, "-d", "s", cwd=tmp_path)
    assert run.stdout.split() == ["s/uniform-last-2", "s/ema-decay-0.5"]
    assert values(tmp_path / "s") == {
        "uniform-last-2/a.pt": 1.5,
        "uniform-last-2/b.pt": 15.0,
        "ema-decay-0.5/a.pt": 1.25,
        "ema-decay-0.5/b.pt": 12.5,
    }


def test_averages_of_composites_go_on(tmp_path):
    for i in range(3):
        write(tmp_path / "run" / f"step_{i}", {"a.pt": w(i), "b.pt": w(10 * i)})
    steps = [f"run/step_{i}" for i in range(3)]
    done("average", *steps[:2], "-o", "two", cwd=tmp_path)
    done("update", "two", steps[2], "-o", "three", cwd=tmp_path)
    assert values(tmp_path / "three") == {"a.pt": 1.0, "b.pt": 10.0}
    again = swavg("update", "three", steps[1], "-o", "again", cwd=tmp_path)
    assert again.returncode == 2
    assert "three holds step_1" in again.stderr
    done("window", "two", "three", "-o", "window", cwd=tmp_path)
    assert values(tmp_path / "window") == {"a.pt": 2.0, "b.pt": 20.0}
    done("ema", *steps[:2], "--decay", "0.5", "-o", "ema", cwd=tmp_path)
    done("ema", "run", "--decay", "0.5", "--resume", "ema", "-o", "later", cwd=tmp_path)
    assert values(tmp_path / "later") == {"a.pt": 1.25, "b.pt": 12.5}


@pytest.mark.parametrize(
    ("output", "works"), [("o.pt", "o"), ("o.safetensors", "o"), ("-", "averaged")]
)
def test_a_file_for_several_parts_is_refused_with_the_folder_that_works(tmp_path, output, works):
    two(tmp_path, llama)
    run = swavg("average", "a", "b", "-o", output, cwd=tmp_path)
    assert run.returncode == 2
    assert "2 parts (consolidated.00.pth, consolidated.01.pth)" in " ".join(run.stderr.split())
    assert f"--output {works}" in " ".join(run.stderr.split())
    done("average", "a", "b", "--output", works, cwd=tmp_path)
    assert values(tmp_path / works)["consolidated.01.pth"] == 6.0


def test_one_part_may_be_written_to_a_file(tmp_path):
    two(tmp_path, lambda i: {"mp_rank_00_model_states.pt": w(i, "module")})
    done("average", "a", "b", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["module"]["w"].tolist() == [0.5] * 3
    done("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o") == {"mp_rank_00_model_states.pt": 0.5}


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            {f"consolidated.0{n}.pth": w(n) for n in range(2)},
            {f"consolidated.0{n}.pth": w(n) for n in range(4)},
            "a has 2 and b has 4 (consolidated.02.pth, consolidated.03.pth only there)",
        ),
        (pipeline(0), {k: v for k, v in pipeline(1).items() if "vae" not in k}, "vae only there"),
        ({"encoder.pt": w(0), "d.pt": w(1)}, {"encoder.pt": w(0), "d.pt": w(1), "x.pt": w(2)},
         "a has 2 and b has 3 (x.pt only there)"),
        ({"model.pt": w(0)}, {"model.pt": w(0), "ema.pt": w(1)}, "b has 2 (ema.pt only there)"),
    ],
)  # fmt: skip
def test_other_parts_are_refused_by_name(tmp_path, one, other, said):
    write(tmp_path / "a", one)
    write(tmp_path / "b", other)
    run = swavg("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert run.returncode == 3
    assert said in " ".join(run.stderr.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("files", [
    {"step-1.pt": w(1), "step-2.pt": w(2)},
    {"best.pt": w(1), "last.pt": w(2)},
    {"model.pt": w(1), "vocab.bin": "words"},
    {"model.pt": w(1), "optimizer.pt": {"state": {}}},
    {"checkpoint.pt": w(1), "best.pt": w(2)},
])  # fmt: skip
def test_runs_that_are_given_together_are_one_series(tmp_path, files):
    for name in "ab":
        write(tmp_path / name, files)
    done("average", "a", "b", "-o", "o.pt", cwd=tmp_path)
    mean = 1.5 if sum(isinstance(each, dict) for each in files.values()) == 2 else 1.0
    if "optimizer.pt" in files:
        mean = 1.0
    assert torch.load(tmp_path / "o.pt")["w"].tolist() == [mean] * 3


def test_runs_of_composites_that_are_given_together_are_one_series(tmp_path):
    for i, run in enumerate("ab"):
        for step in (1, 2):
            parts = {"encoder.pt": w(10 * i + step), "decoder.pt": w(100)}
            write(tmp_path / run / f"step_{step}", parts)
    done("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o") == {"encoder.pt": 6.5, "decoder.pt": 100.0}


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (("--exclude", "glob_*"), {"model.ckpt": 0.5, "normalizer.ckpt": 21.0}),
        (("--include", "glob_*"), {"model.ckpt": 1.0, "normalizer.ckpt": 20.5}),
    ],
)
def test_globs_may_leave_out_a_whole_part(tmp_path, globs, expected):
    two(tmp_path, speechbrain)
    done("average", "a", "b", *globs, "-o", "o", cwd=tmp_path)
    found = values(tmp_path / "o")
    assert {name: found[name] for name in expected} == expected
    run = swavg("average", "a", "b", "--exclude", "*", "-o", "p", cwd=tmp_path)
    assert run.returncode == 2
    assert "in any part" in run.stderr


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (("--include", "unet/*"), (0.5, 101.0)),
        (("--exclude", "vae/w"), (0.5, 101.0)),
        (("--include", "vae/*", "--include", "*/nothing", "--exclude", "unet/w"), None),
        (("--exclude", "uent/w"), None),
        (("--include", "w"), (0.5, 100.5)),
    ],
)
def test_globs_may_begin_with_a_part(tmp_path, globs, expected):
    two(tmp_path, pipeline)
    run = swavg("average", "a", "b", *globs, "-o", "o", cwd=tmp_path)
    if expected is None:
        assert run.returncode == 2
        assert "matches none of 1 tensors" in run.stderr
        return
    found = values(tmp_path / "o")
    assert found["unet/diffusion_pytorch_model.safetensors"] == expected[0]
    assert found["vae/diffusion_pytorch_model.bin"] == expected[1]


def test_own_weights_have_the_names_that_inspect_shows(tmp_path):
    own = {"model.safetensors": w(0) | {"v": torch.ones(2)}}
    two(tmp_path, lambda i: modules(i) | own)
    globs = ("--exclude", "v", "--exclude", "2_Dense/w")
    run = done("average", "a", "b", *globs, "--json", "-n", cwd=tmp_path)
    assert [each["name"] for each in json.loads(run.stdout)["not_averaged"]] == ["v", "2_Dense/w"]
    assert {*open_whole(tmp_path / "a")} == {"v", "w", "2_Dense/w"}


def test_a_file_of_one_tensor_is_copied_and_told(tmp_path):
    two(tmp_path, lambda i: speechbrain(i) | {"mean.pt": torch.full((2,), float(i))})
    run = done("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o")["model.ckpt"] == 0.5
    assert torch.load(tmp_path / "o" / "mean.pt").tolist() == [1.0, 1.0]
    said = " ".join(run.stderr.split())
    assert "warning not averaged but copied from b: mean.pt." in said
    assert "as no weights are in them: brain.ckpt, counter.ckpt" in said


def test_an_average_of_numbered_parts_goes_on(tmp_path):
    for i in (1, 2, 3):
        parts = {f"part_{part}/model.pt": w(10 * part + i) for part in (1, 2)}
        write(tmp_path / f"step_{i}", parts)
    done("average", "step_1", "step_2", "-o", "avg", cwd=tmp_path)
    done("update", "avg", "step_3", "-o", "next", cwd=tmp_path)
    assert values(tmp_path / "next") == {"part_1/model.pt": 12.0, "part_2/model.pt": 22.0}
    assert {*open_whole(tmp_path / "next")} == {"part_1/model.pt/w", "part_2/model.pt/w"}


def test_averages_of_a_sweep_are_no_parts(tmp_path):
    runs = [write(tmp_path / "r", {f"step_{i}.pt": w(i)}) / f"step_{i}.pt" for i in (1, 2, 3)]
    for decay in ("0.5", "0.9"):
        done("ema", *runs, "--decay", decay, "-o", tmp_path / "s" / f"ema_{decay}.pt")
    run = swavg("inspect", "s", cwd=tmp_path)
    assert "s: holds 2 checkpoints, where one is expected" in run.stderr
    assert run.stderr.endswith("\n      swavg list s\n")
    done("list", "s", cwd=tmp_path)


def test_a_key_is_for_torch_files(tmp_path):
    files = pipeline(0)
    files["vae/diffusion_pytorch_model.bin"] = {"ema": w(5)}
    for name in ("a", "b"):
        write(tmp_path / name, files)
    done("average", "a", "b", "--key", "ema", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o")["vae/diffusion_pytorch_model.bin"] == 5
    for name in ("a", "b"):
        (tmp_path / name / "vae" / "diffusion_pytorch_model.bin").unlink()
    run = swavg("average", "a", "b", "--key", "ema", "-o", "p", cwd=tmp_path)
    assert run.returncode == 2
    assert "--key 'ema' is looked for in PyTorch files" in run.stderr


def test_what_is_done_for_each_row_is_done_for_each_part(tmp_path):
    two(tmp_path, lambda i: {"a.pt": {"model.w": torch.ones(2)}, "b.pt": {"model.v": w(i)["w"]}})
    done("average", "a", "b", "--dtype", "float16", "--strip-prefix", "model.", "-o", "o",
         cwd=tmp_path)  # fmt: skip
    assert torch.load(tmp_path / "o" / "b.pt")["v"].dtype == torch.float16
    assert torch.load(tmp_path / "o" / "a.pt")["w"].tolist() == [1.0, 1.0]
    run = swavg("average", "a", "b", "--lora", "exact", "-o", "p", cwd=tmp_path)
    assert run.returncode == 2
    assert "such as a/a.pt" in " ".join(run.stderr.split())


def test_batch_norm_names_the_part_that_bn_takes(tmp_path):
    norm = {"running_mean": torch.ones(2), "running_var": torch.ones(2), "w": torch.ones(2)}
    two(tmp_path, lambda i: {"d.pt": w(i), "e.pt": {f"n.{k}": v + i for k, v in norm.items()}})
    run = done("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert "swavg bn o/e.pt" in " ".join(run.stderr.split())


def test_a_run_of_several_parts_each_is_refused_with_the_pattern_that_works(tmp_path):
    for epoch in (1, 2):
        for part in (0, 1):
            file = {f"checkpoint_{epoch}_{epoch}00-model_part-{part}.pt": w(epoch + 10 * part)}
            write(tmp_path / "run", file)
    run = swavg("average", "run", "-o", "o.pt", cwd=tmp_path)
    assert run.returncode == 3
    assert "--pattern '*-model_part-0*'" in run.stderr
    done("average", "run", "--pattern", "*-model_part-0*", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["w"].tolist() == [1.5] * 3


def test_ranks_that_are_given_as_files_are_refused_with_the_folder_that_works(tmp_path):
    for name, i in (("a", 0), ("b", 1)):
        write(tmp_path / name, {f"model_rank{rank}.pt": w(10 * i + rank) for rank in (0, 1)})
    run = swavg("average", "a/model_rank0.pt", "a/model_rank1.pt", "-o", "o.pt", cwd=tmp_path)
    assert run.returncode == 3
    assert f"such as {tmp_path}/a" in " ".join(run.stderr.split()).replace(" /", "/").replace(
        "such as/", "such as /"
    )
    for rank in (8, 16):
        write(tmp_path, {f"lora_rank{rank}.pt": w(rank)})
    done("average", "lora_rank8.pt", "lora_rank16.pt", "-o", "o.pt", cwd=tmp_path)


def test_weights_that_zero_3_has_spread_are_refused(tmp_path):
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in (0, 1)]
    two(tmp_path, lambda i: {name: w(i, "module") for name in names})
    run = swavg("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert run.returncode == 4
    assert "joined with the *_optim_states.pt of all ranks" in " ".join(run.stderr.split())


@pytest.mark.parametrize("damage", [b"", b"words", b"PK\3\4cut short"])
def test_a_broken_part_is_an_error(tmp_path, damage):
    two(tmp_path, llama)
    (tmp_path / "b" / "consolidated.01.pth").write_bytes(damage)
    run = swavg("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert run.returncode == 4
    assert "b/consolidated.01.pth" in run.stderr
    assert not (tmp_path / "o").exists()


def test_a_component_that_cannot_be_read_is_an_error(tmp_path):
    two(tmp_path, pipeline)
    for name in "ab":
        (tmp_path / name / "vae" / "diffusion_pytorch_model.bin").unlink()
        (tmp_path / name / "vae" / "model.onnx").write_text("graph")
    run = swavg("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert run.returncode == 4
    assert "/vae/model.onnx: is an ONNX model" in run.stderr


def test_an_older_average_is_replaced_and_nothing_else(tmp_path):
    two(tmp_path, modules)
    done("average", "a", "b", "-o", "o", cwd=tmp_path)
    assert swavg("average", "a", "b", "-o", "o", cwd=tmp_path).returncode == 7
    done("average", "a", "a", "-o", "o", "--force", cwd=tmp_path)
    assert values(tmp_path / "o")["2_Dense/model.safetensors"] == 50.0
    (tmp_path / "o" / "2_Dense" / "notes.txt").write_text("mine")
    run = swavg("average", "a", "b", "-o", "o", "--force", cwd=tmp_path)
    assert run.returncode == 5
    assert "notes.txt" in run.stderr
    assert swavg("average", "a", "b", "-o", "a/2_Dense/o", cwd=tmp_path).returncode == 5
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_report_is_of_the_whole(tmp_path):
    two(tmp_path, modules)
    report = json.loads(done("average", "a", "b", "-o", "o", "--json", cwd=tmp_path).stdout)
    assert report["parts"] == [".", "2_Dense"]
    assert report["output"] == "o"
    assert [(each["name"], each["tensors"]) for each in report["inputs"]] == [("a", 2), ("b", 2)]
    assert report["tensors"]["averaged"] == 2
    assert report["files"] == 2
    assert report["notes"] == ["not copied from b: onnx"]
    assert report["recipe"]["inputs"] == ["a", "b"]
    # ||(0, 50) - (0.5, 50.5)|| / ||(0.5, 50.5)||
    distance = pytest.approx(0.5 * 2**0.5 / 50.5025, rel=1e-5)
    assert report["inputs"][0]["relative_distance"] == distance
    shown = done("average", "a", "b", "-o", "p", "-n", cwd=tmp_path).stdout
    assert "parts     ., 2_Dense" in shown


def test_a_composite_is_looked_at_by_part(tmp_path):
    two(tmp_path, llama)
    found = json.loads(done("inspect", "a", "--json", cwd=tmp_path).stdout)
    assert [each["name"] for each in found["tensors"]] == [
        "consolidated.00.pth/w",
        "consolidated.01.pth/w",
    ]
    run = swavg("diff", "a", "b", cwd=tmp_path)
    assert run.returncode == 3
    assert "consolidated.01.pth/w" in run.stdout
    assert open_whole(tmp_path / "a").read("consolidated.01.pth/w").tolist() == [1.0] * 3


def test_a_composite_beside_a_file_is_refused(tmp_path):
    two(tmp_path, llama)
    write(tmp_path, {"c.pt": w(1)})
    run = swavg("average", "a", "c.pt", "-o", "o", cwd=tmp_path)
    assert run.returncode == 3
    assert "such as a/consolidated.00.pth" in " ".join(run.stderr.split())
    done("average", "a/consolidated.00.pth", "c.pt", "-o", "o.pt", cwd=tmp_path)


def test_more_parts_than_files_may_be_open(tmp_path):
    two(tmp_path, lambda i: {f"layer_{n:03d}-model_00-model_states.pt": w(i) for n in range(80)})
    limited = f"ulimit -S -n 64 && exec {sys.executable} -m swavg average a b -o o --threads 1"
    run = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {*values(tmp_path / "o").values()} == {0.5}
    assert len(values(tmp_path / "o")) == 80


def test_an_average_of_a_run_is_not_taken_for_a_snapshot_of_it(tmp_path):
    for i in range(2):
        write(tmp_path / "save" / f"CKPT+2024-01-0{i + 1}", speechbrain(i))
    done("average", "save", "-o", "save/CKPT+avg", cwd=tmp_path)
    run = done("average", "save", "-o", "o", cwd=tmp_path)
    assert "ignored CKPT+avg: swavg wrote it" in run.stderr
    assert values(tmp_path / "o")["model.ckpt"] == 0.5


def test_names_of_parts_may_carry_the_step(tmp_path):
    for step in (1000, 2000):
        files = {f"unet_{step}.pt": w(step), f"text_encoder_{step}.pt": w(1)}
        write(tmp_path / f"step_{step}", files)
    done("average", "step_1000", "step_2000", "-o", "o", cwd=tmp_path)
    assert values(tmp_path / "o") == {"text_encoder_2000.pt": 1.0, "unet_2000.pt": 1500.0}


def test_one_folder_of_a_step_is_one_checkpoint(tmp_path):
    write(tmp_path / "checkpoint-3", {"encoder.pt": w(1), "decoder.pt": w(3)})
    run = done("average", "checkpoint-3", "-o", "o", cwd=tmp_path)
    assert "one checkpoint" in run.stderr
    assert values(tmp_path / "o") == {"decoder.pt": 3.0, "encoder.pt": 1.0}


def test_files_that_differ_by_a_number_are_a_series(tmp_path):
    for k in (1, 2):
        write(tmp_path / f"run{k}", {f"lora-00000{i}.safetensors": w(10 * k + i) for i in (1, 2)})
    done("average", "run1", "run2", "-o", "o.safetensors", cwd=tmp_path)
    assert open_whole(tmp_path / "o.safetensors").read("w")[0] == 16.5


def test_several_controlnets_and_routed_encoders_are_parts(tmp_path):
    index = {"unet": ["diffusers", "U"], "controlnet": ["x", "MultiControlNetModel"]}
    for i in range(2):
        parts = ("unet", "controlnet", "controlnet_1")
        files = {f"{part}/diffusion_pytorch_model.safetensors": w(i) for part in parts}
        write(tmp_path / f"p{i}", {**files, "model_index.json": index})
        parts = ("query_0_StaticEmbedding", "document_0_Transformer", "1_Dense")
        files = {f"{part}/model.safetensors": w(i) for part in parts}
        listed = [{"path": ""}, {"path": "1_Dense"}]
        write(tmp_path / f"m{i}", {**files, "router_config.json": {}, "modules.json": listed})
    for letter in "pm":
        done("average", f"{letter}0", f"{letter}1", "-o", letter, cwd=tmp_path)
        weights = [v for v in values(tmp_path / letter).values() if not isinstance(v, bytes)]
        assert weights == [0.5] * 3


def test_weights_that_no_output_has_are_a_warning(tmp_path):
    for i in range(2):
        write(
            tmp_path / f"m{i}",
            {"model.safetensors": w(i), "config.json": {}, "colbert_linear.pt": w(i),
             "optimizer.pt": w(i), "onnx/model.pt": w(i), "checkpoint-5/model.pt": w(i)},
        )  # fmt: skip
    run = done("average", "m0", "m1", "-o", "o", cwd=tmp_path)
    told = " ".join(run.stderr.split())
    assert "though there may be weights in them: colbert_linear.pt. Average" in told


def test_an_average_that_training_kept_beside_the_weights_is_a_note(tmp_path):
    made = {"swavg": '{"method": "training ema", "n": 3}'}
    for i in range(2):
        write(tmp_path / f"m{i}", {"model.safetensors": w(i), "config.json": {}})
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / f"m{i}/ema.safetensors", made)
    run = done("average", "m0", "m1", "-o", "o", cwd=tmp_path)
    assert "may be weights" not in run.stderr
    assert "averages that swavg took in training: m1/ema.safetensors" in run.stderr


def test_files_without_a_suffix_that_begin_as_other_formats_stay_side_files(tmp_path):
    two(tmp_path, speechbrain)
    for i, name in enumerate("ab"):
        (tmp_path / name / "counter").write_bytes(b"\x82\xa1w\x01\xa1v" + bytes([i]))
    run = swavg("average", "a", "b", "-o", "out", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "counter").read_bytes() == b"\x82\xa1w\x01\xa1v\x01"
