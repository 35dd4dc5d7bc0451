"""Families of files: networks beside each other, a run's end, runs of several seeds."""

import json

import pytest
import torch
from checkpoints import load, save, state
from command_line import done, swavg

from swavg.errors import RequestError
from swavg.series import Selection, check_equal_steps, discover, in_given_order, select
from swavg.series.families import kinds, pattern_for, read_names, runs


def write(path, value, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"w": torch.full((3,), float(value)), **more}, path)
    return path


def names(series):
    return [path.rpartition("/")[2] for path in series.paths]


def counts(*given):
    return [list(facts.counts.values()) for facts in read_names(given)]


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        (("net_g_1000.pth", "net_g_2000.pth"), [[1000], [2000]]),
        (("net_g_1000.pth", "net_d_1000.pth"), [[1000], [1000]]),
        (("G_100.pt", "D_100.pt"), [[100], [100]]),
        (("10_net_G_A.pth", "20_net_G_A.pth"), [[10], [20]]),
        (("lora-000001.safetensors", "lora-000010.safetensors"), [[1], [10]]),
        (("run_3.vae.100.pt", "run_3.vae.200.pt"), [[100], [200]]),
        (("lora_000002.safetensors", "lora.safetensors"), [[2], []]),
        # What is none, and what nothing tells apart from others.
        (("net_g_1000.pth",), [[]]),
        (("lr3_1000.pth", "lr1_1000.pth"), [[], []]),
        (("a_1.pt", "b_1.pt", "d_1.pt", "g_1.pt"), [[], [], [], []]),
        (("vit_seed_1.pt", "vit_seed_2.pt"), [[], []]),
        (("fold-0.pt", "fold-1.pt"), [[], []]),
        (("llama-2-7b.pt", "llama-2-13b.pt"), [[], []]),
        (("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"), [[], []]),
        (("x_20240131.pt", "x_20240201.pt"), [[], []]),
        (("model-v0.1.pt", "model-v0.2.pt"), [[], []]),
        (("lora_rank_8.pt", "lora_rank_16.pt"), [[], []]),
        (("avg_5.pt", "avg_10.pt"), [[], []]),
    ],
)
def test_a_number_that_alone_tells_names_apart_is_their_step(given, steps):
    assert counts(*given) == steps


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("net_g_{}.pth", "net_d_{}.pth"),
        ("generator_{}.pth", "discriminator_{}.pth"),
        ("G_{}.pt", "D_{}.pt"),
        ("{}_net_G.pth", "{}_net_D.pth"),
        ("g_{:08}.pt", "do_{:08}.pt"),
        ("seed0_step_{}.pt", "seed1_step_{}.pt"),
        ("ep0-ba{}.pt", "ep0-ba{}-v1.pt"),
        ("epoch=3-step={}.ckpt", "epoch=3-step={}-v1.ckpt"),
        ("fold_0_epoch_{}.pt", "fold_1_epoch_{}.pt"),
    ],
)
@pytest.mark.parametrize("steps", [(1000,), (9, 10, 11)])
def test_two_families_of_the_same_steps_are_refused_with_a_pattern_that_works(
    tmp_path, one, other, steps
):
    if steps == (1000,) and one.startswith("g_"):
        steps = (900, 1000)
    for step in steps:
        write(tmp_path / "run" / one.format(step), step)
        write(tmp_path / "run" / other.format(step), 1)
    told = swavg("average", "run", "-o", "o.pt", cwd=tmp_path)
    assert told.returncode == 2
    assert not (tmp_path / "o.pt").exists()
    pattern = told.stderr.partition("--pattern '")[2].partition("'")[0]
    if len(steps) > 1:
        assert "there are several series, " in told.stderr
        assert told.stderr.count(f" ({len(steps)} files)") == 2
    done("average", "run", "--pattern", pattern, "-o", "o.pt", cwd=tmp_path)
    value = torch.load(tmp_path / "o.pt")["w"][0].item()
    # Of sides that are as good, the plain name is offered.
    assert value == (sum(steps) / len(steps) if "-v1" in other or pattern in one else value)
    assert value in (1, sum(steps) / len(steps))


def test_networks_whose_steps_are_inside_are_told_apart_too(tmp_path):
    for step in (100, 200):
        write(tmp_path / f"net_g_{step}.pth", step, iter=step)
        write(tmp_path / f"net_d_{step}.pth", -step, iter=step)
    series = discover([tmp_path])
    assert (series.unit, series.steps) == ("step", (100, 100, 200, 200))
    with pytest.raises(RequestError, match=r"several series, net_d_\*\.pth \(2 files\)"):
        check_equal_steps(series)


def test_variants_of_one_epoch_stay_a_soup(tmp_path):
    for number in (1, 2, 3):
        write(tmp_path / f"variant_{number}.pt", number, epoch=10)
    series = discover([tmp_path])
    assert len(series) == 3
    check_equal_steps(series)


def test_a_copy_in_place_of_a_step_is_left_out(tmp_path):
    for name in ("10_net_G.pth", "20_net_G.pth", "latest_net_G.pth"):
        write(tmp_path / "run" / name, len(name))
    write(tmp_path / "run/latest_net_D.pth", 5)
    assert names(discover([tmp_path / "run"])) == ["10_net_G.pth", "20_net_G.pth"]


@pytest.mark.parametrize(
    ("given", "mixed"),
    [
        (["G_1.pt", "G_2.pt", "D_1.pt", "D_2.pt"], ["G_*.pt", "D_*.pt"]),
        (["a_step_1.pt", "a_step_2.pt", "b_step_1.pt", "b_step_2.pt"],
         ["a_step_*.pt", "b_step_*.pt"]),
        (["net_g_5.pth", "net_d_5.pth"], ["net_g_*.pth", "net_d_*.pth"]),
        (["generator.pt", "discriminator.pt"], ["generator.pt", "discriminator.pt"]),
        (["encoder_epoch_3.pt", "decoder_epoch_3.pt"],
         ["encoder_epoch_*.pt", "decoder_epoch_*.pt"]),
        (["a_step_1.pt", "b_step_1.pt"], []),
        (["a_step_1.pt", "a_step_2.pt", "b_step_3.pt"], []),
        (["d.pt", "g.pt"], []),
        (["D.pt", "G.pt"], []),
        (["step_1-loss=0.5.pt", "step_2-loss=0.25.pt"], []),
        (["seed1.pt", "seed2.pt", "seed3.pt"], []),
    ],
)  # fmt: skip
def test_families_that_share_steps_are_of_several_kinds(given, mixed):
    assert kinds(given) == mixed


@pytest.mark.parametrize(
    ("given", "several"),
    [
        (["x/fold0_best.pt", "x/fold1_best.pt", "x/fold1_last.pt"], ["fold0", "fold1"]),
        (["x/fold_0.pt", "x/fold_1.pt"], ["fold_0", "fold_1"]),
        (["fold-0/best.pt", "fold-1/best.pt"], ["fold-0", "fold-1"]),
        (["x/m-fold0-epoch5.pt", "x/m-fold1-epoch7.pt"], ["fold0", "fold1"]),
        (["run_a/last.ckpt", "run_b/last.ckpt"], ["run_a", "run_b"]),
        (["x/seed=1-final.pt", "x/seed=2-final.pt"], ["seed=1", "seed=2"]),
        # A soup, one run, and other words.
        (["x/seed1.pt", "x/seed2.pt", "x/seed3.pt"], []),
        (["x/fold0_epoch_1.pt", "x/fold0_epoch_2.pt"], []),
        (["runs/best.pt", "run/last.pt"], []),
        (["x/prune1_best.pt", "x/prune2_best.pt"], []),
    ],
)
def test_ends_of_several_runs_are_told_by_their_names(given, several):
    assert runs(given) == several


def test_ends_of_several_folds_are_a_warning(tmp_path):
    for fold in range(3):
        write(tmp_path / f"run/fold{fold}_best.pt", fold)
    told = done("average", "run", "--no-geometry", "-o", "o.pt", cwd=tmp_path).stderr
    assert "warning fold0, fold1, fold2 are several runs, going by the names" in told


def test_several_networks_among_given_paths_are_a_warning(tmp_path):
    paths = [
        write(tmp_path / f"gan/{kind}_{step}.pt", step)
        for kind in ("generator", "discriminator")
        for step in (100, 200)
    ]
    told = done("average", *paths, "-o", "o.pt", cwd=tmp_path).stderr
    assert "warning generator_*.pt, discriminator_*.pt share steps" in told
    told = done("average", *paths[:2], "-o", "one.pt", "--no-geometry", cwd=tmp_path).stderr
    assert "warning" not in told


def test_a_model_without_a_number_is_the_end_of_its_run(tmp_path):
    for number, name in enumerate(["lora-000001", "lora-000002", "lora"]):
        save(tmp_path / f"kohya/{name}.safetensors", state(number))
    for number, name in enumerate(["model_epoch_1", "model_epoch_2", "model"]):
        write(tmp_path / f"run/{name}.pt", number)
    series = discover([tmp_path / "kohya"])
    assert names(series)[2] == "lora.safetensors"
    assert series.notes == ("taken as the newest, going by the name: lora.safetensors",)
    series = discover([tmp_path / "run"])
    assert names(series) == ["model_epoch_1.pt", "model_epoch_2.pt", "model.pt"]
    chosen = select(series, Selection(last=2))
    assert names(chosen) == ["model_epoch_2.pt", "model.pt"]
    assert names(select(series, Selection(from_step=2))) == ["model_epoch_2.pt"]
    done("ema", "run", "--decay", "0.5", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["w"][0].item() == 0.25 * 0 + 0.25 * 1 + 0.5 * 2


def test_paths_with_numbers_come_in_their_order(tmp_path):
    paths = [write(tmp_path / f"net_g_{step}.pth", step) for step in (1000, 200)]
    assert in_given_order(paths).steps == (200, 1000)
    assert in_given_order(paths, keep_order=True).steps == (1000, 200)


@pytest.mark.parametrize(
    ("family", "own", "others", "pattern"),
    [
        ("step_*.pt", ["step_1.pt"], ["raw_step_1.pt"], "step_*.pt"),
        ("step=*.ckpt", ["step=10.ckpt"], ["step=10-v1.ckpt"], "step*[!v][0-9].ckpt"),
        ("step=*.ckpt", ["step=1.ckpt"], ["step=1-v1.ckpt"], "step*[!v][0-9].ckpt"),
        ("*.pt", ["1.pt"], ["1-v1.pt"], None),
        ("*.pt", ["1.pt", "12.pt"], ["net_1.pt"], "[0-9]*.pt"),
        ("a_*[[]x].pt", ["a_1[x].pt"], ["b_1[x].pt"], "a_*[[]x].pt"),
    ],
)
def test_a_pattern_takes_all_of_a_family_and_no_other(family, own, others, pattern):
    assert pattern_for(family, own, others) == pattern


def test_ranks_of_several_steps_are_no_checkpoint_and_each_rank_is_a_series(tmp_path):
    for rank in (0, 1):
        for step in (100, 200, 300):
            name = f"megatron--val_loss=2.{step}-step={step}.ckpt"
            write(tmp_path / f"nemo/mp_rank_0{rank}" / name, step + rank)
    for command in ("average", "list"):
        more = ["-o", "o"] if command == "average" else []
        told = swavg(command, "nemo", *more, cwd=tmp_path)
        assert told.returncode == 4
        assert "nemo: holds ranks of 3 steps, 100, 200, 300" in told.stderr
        assert told.stderr.rstrip().endswith("such as nemo/mp_rank_00.")
    told = swavg("average", *(tmp_path / "nemo").glob("*/*"), "-o", "o.ckpt", cwd=tmp_path)
    assert told.returncode == 3
    assert "Average those of each part alone, such as" in told.stderr
    done("average", "nemo/mp_rank_00", "--last", "2", "-o", "o.ckpt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.ckpt")["w"].tolist() == [250.0] * 3


def test_ranks_beside_each_other_are_averaged_each_alone(tmp_path):
    for rank in (0, 1):
        for step in (500, 1000):
            write(tmp_path / f"run/ep0-ba{step}-rank{rank}.pt", step + rank)
    told = swavg("average", "run", "-o", "o.pt", cwd=tmp_path)
    assert told.returncode == 2
    assert "they are parts (ranks) of one checkpoint" in told.stderr
    assert "each rank alone, such as with --pattern 'ep*-ba*-rank0.pt'" in told.stderr
    done("average", "run", "--pattern", "ep*-ba*-rank0.pt", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["w"].tolist() == [750.0] * 3


def hugging_face_run(folder):
    history = [{"step": 500, "eval_loss": 1.0}, {"step": 1000, "eval_loss": 0.5}]
    for step in (500, 1000, 1500):
        save(folder / f"checkpoint-{step}/model.safetensors", {"w": torch.full((3,), float(step))})
        state_of_it = {"global_step": step, "log_history": history}
        (folder / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps(state_of_it))
        (folder / f"checkpoint-{step}/config.json").write_text("{}")
    save(folder / "model.safetensors", {"w": torch.full((3,), 7.0)})
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("command", "value"),
    [
        (["average", "run", "--last", "2"], 1250),
        (["average", "run", "--best", "2", "--metric", "eval_loss"], 750),
        (["average", "run", "--pattern", "checkpoint-*"], 1000),
        (["ema", "run", "--decay", "0.5"], 500 / 4 + 1000 / 4 + 1500 / 2),
        (["ema", "run", "--half-life", "500steps"], 500 / 4 + 1000 / 4 + 1500 / 2),
    ],
)
def test_of_a_run_that_is_a_model_too_its_checkpoints_are_chosen(tmp_path, command, value):
    hugging_face_run(tmp_path / "run")
    told = done(*command, "-o", "o.safetensors", cwd=tmp_path)
    assert load(tmp_path / "o.safetensors")["w"].tolist() == [value] * 3
    assert "--pattern" in command or "chosen among the checkpoints 'checkpoint-*'" in told.stderr


def test_a_run_that_is_a_model_too_is_that_model_where_nothing_is_chosen(tmp_path):
    hugging_face_run(tmp_path / "run")
    told = done("average", "run", "-o", "o.safetensors", cwd=tmp_path)
    assert load(tmp_path / "o.safetensors")["w"].tolist() == [7.0] * 3
    assert "give --pattern 'checkpoint-*'" in told.stderr
    assert "one checkpoint: the average is a copy" in told.stderr
    # Two models are a soup.
    hugging_face_run(tmp_path / "other")
    told = done("average", "run", "other", "--no-geometry", "-o", "soup.safetensors", cwd=tmp_path)
    assert load(tmp_path / "soup.safetensors")["w"].tolist() == [7.0] * 3
    assert "note" not in told.stderr


def test_sweeps_choose_among_the_checkpoints_too(tmp_path):
    hugging_face_run(tmp_path / "run")
    done("sweep", "run", "-r", "uniform:last=2", "-d", "sweep", cwd=tmp_path)
    assert load(tmp_path / "sweep/uniform-last-2/model.safetensors")["w"].tolist() == [1250.0] * 3


@pytest.mark.parametrize("smoothing", [["--half-life", "1steps"], ["--decay", "0.5", "--per-step"]])
def test_steps_of_named_paths_are_read_from_the_files_where_they_are_needed(tmp_path, smoothing):
    paths = [write(tmp_path / f"gan/{name}.pth", step, step=step)
             for name, step in (("x", 3), ("y", 1), ("z", 2))]  # fmt: skip
    done("ema", "gan", *smoothing, "-o", "folder.pth", cwd=tmp_path)
    done("ema", *paths, *smoothing, "-o", "named.pth", cwd=tmp_path)
    value = 1 / 4 + 2 / 4 + 3 / 2
    for name in ("folder", "named"):
        assert torch.load(tmp_path / f"{name}.pth")["w"].tolist() == [value] * 3


def test_an_ema_does_not_guess_where_a_checkpoint_belongs(tmp_path):
    for number, name in enumerate(["step_1", "step_2", "other"]):
        write(tmp_path / f"run/{name}.pt", number)
    told = swavg("ema", "run", "--decay", "0.5", "-o", "o.pt", cwd=tmp_path)
    assert told.returncode == 2
    assert "No step is known for other.pt" in told.stderr
    assert "--pattern 'step_*.pt'" in told.stderr
    done("ema", "run", "--pattern", "step_*.pt", "--decay", "0.5", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["w"].tolist() == [0.5] * 3
    given = [tmp_path / f"run/{name}.pt" for name in ("other", "step_1", "step_2")]
    done("ema", *given, "--decay", "0.5", "-o", "given.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "given.pt")["w"].tolist() == [2 / 4 + 0 / 4 + 1 / 2] * 3
    # Where the order does not matter, it is a note.
    assert "no step known for other.pt" in done("average", "run", "-o", "m.pt", cwd=tmp_path).stderr
