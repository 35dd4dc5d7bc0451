"""``swavg bn``: the statistics are torch's own to the bit, and nothing else changes."""

import copy
import json
import os
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from checkpoints import load, save
from json_documents import document
from make import debris
from torch import nn

import swavg
from swavg.cli import main
from swavg.engine.recipe import recipe_of
from swavg.engine.verify import verify
from swavg.errors import InputError, MismatchError, NumericsError, OutputError, RequestError
from swavg.evaluation.recalibrate import recalibrate

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks: threads only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(seed=0, head=True):
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 3),
    ]
    model = nn.Sequential(*(layers if head else layers[:-1]))
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked += 100 + seed
    return model


def batches(count=4, size=6, seed=9):
    generator = torch.Generator().manual_seed(seed)
    inputs = [3 * torch.randn(size, 1, 6, 6, generator=generator) + 1 for _ in range(count)]
    return [(each, torch.zeros(size)) for each in inputs]


def expected(model, data):
    """The state dict after torch's own recalibration."""
    model = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(data, model)
    return model.state_dict()


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_layer_may_be_called_module_as_wrappers_are(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.module(x)

    model, data = Named(), [torch.randn(6, 3) + 2 for _ in range(3)]
    wanted = expected(model, data)
    averaged = save(tmp_path / "averaged.safetensors", model.state_dict())
    done = recalibrate(averaged, model, data, output=tmp_path / "o.safetensors")
    assert (done.layers, done.notes) == (1, ())
    assert_equal(load(tmp_path / "o.safetensors"), wanted)


STATISTICS = [
    f"{layer}.{name}"
    for layer in (1, 5)
    for name in ("running_mean", "running_var", "num_batches_tracked")
]


def test_a_safetensors_file_gets_the_statistics_that_torch_computes_to_the_bit(tmp_path):
    model = network(1)
    path = save(tmp_path / "avg.safetensors", model.state_dict(), {"format": "pt", "note": "kept"})
    done = recalibrate(path, network(2), batches(), output=tmp_path / "out.safetensors")
    assert_equal(load(done.output), expected(model, batches()))
    assert sorted(done.running_statistics) == sorted(STATISTICS)
    assert (done.layers, done.batches, done.examples) == (2, 4, 24)
    with safetensors.safe_open(done.output, "pt") as file:
        assert file.metadata()["note"] == "kept"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pt_file_keeps_optimizer_epoch_and_structure(tmp_path, legacy):
    model = network(1)
    optimizer = torch.optim.Adam(model.parameters())
    model(batches()[0][0]).sum().backward()
    optimizer.step()
    whole = {
        "epoch": 7,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": OrderedDict(lr=0.1),
    }
    path = tmp_path / "avg.pt"
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    done = recalibrate(path, network(2), batches())
    assert done.output == str(tmp_path / "avg-bn.pt")
    found = torch.load(done.output, weights_only=True)
    assert_equal(found["model"], expected(model, batches()))
    assert (found["epoch"], found["args"]) == (7, OrderedDict(lr=0.1))
    for one, other in zip(
        found["optimizer"]["state"].values(), whole["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(one["exp_avg"], other["exp_avg"])
    assert done.notes == ()


def test_only_the_bytes_of_statistics_differ(tmp_path):
    model = network(1)
    first = save(tmp_path / "a.safetensors", model.state_dict())
    # Of a file that swavg wrote, the header differs in the recipe only.
    swavg.average([first, first], output=tmp_path / "avg.safetensors")
    recalibrate(tmp_path / "avg.safetensors", network(2), batches())
    before = swavg.open_checkpoint(tmp_path / "avg.safetensors")
    after = swavg.open_checkpoint(tmp_path / "avg-bn.safetensors")
    assert list(before) == list(after)
    changed = [name for name in before if before.read(name).tobytes() != after.read(name).tobytes()]
    assert sorted(changed) == sorted(STATISTICS)
    assert [each.spec for each in before.tensors.values()] == [
        each.spec for each in after.tensors.values()
    ]


def test_a_folder_keeps_shards_index_and_config(tmp_path):
    model = network(1)
    state = model.state_dict()
    folder = tmp_path / "avg"
    folder.mkdir()
    names = list(state)
    shards = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    for shard, members in shards.items():
        save(folder / shard, {name: state[name] for name in members}, {"format": "pt"})
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"width": 4}')
    done = recalibrate(folder, network(2), batches())
    out = Path(done.output)
    assert out == tmp_path / "avg-bn"
    assert (out / "config.json").read_text() == '{"width": 4}'
    found = json.loads((out / "model.safetensors.index.json").read_text())
    assert found["weight_map"] == weight_map
    wanted = expected(model, batches())
    for shard, members in shards.items():
        assert_equal(load(out / shard), {name: wanted[name] for name in members})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_keep_the_dtype_of_the_file_rounded_once(tmp_path, dtype):
    model = network(1).to(dtype)
    path = save(tmp_path / "avg.safetensors", model.state_dict())
    done = recalibrate(path, network(2), batches())
    wide = expected(model.float(), batches())
    found = load(done.output)
    for name in STATISTICS:
        kept = wide[name].to(dtype) if wide[name].is_floating_point() else wide[name]
        assert torch.equal(found[name], kept), name
        assert found[name].dtype == kept.dtype


def test_the_recipe_goes_on_and_says_what_was_done(tmp_path):
    paths = [save(tmp_path / f"{i}.safetensors", network(i).state_dict()) for i in (1, 2)]
    swavg.average(paths, output=tmp_path / "avg.safetensors")
    before = recipe_of(tmp_path / "avg.safetensors")
    done = recalibrate(tmp_path / "avg.safetensors", network(3), batches())
    found = recipe_of(done.output)
    assert found.pop("batch_norm") == {"layers": 2, "batches": 4, "examples": 24}
    assert found == before
    assert found["n"] == 2
    with pytest.raises(InputError, match="statistics that were recomputed, which is not done ag"):
        verify(done.output)
    other = recalibrate(paths[0], network(3), batches())
    assert recipe_of(other.output)["inputs"] == ["1.safetensors"]


def test_doing_it_twice_gives_the_same_bytes(tmp_path):
    path = save(tmp_path / "avg.safetensors", network(1).state_dict())
    for name in ("one", "two"):
        recalibrate(path, network(2), batches(), output=tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


def test_wrappers_names_do_not_matter(tmp_path):
    model = network(1)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / "avg.pt"
    torch.save(state, path)
    compiled = torch.compile(network(2), backend="eager")
    done = recalibrate(path, compiled, batches())
    wanted = {f"module.{name}": tensor for name, tensor in expected(model, batches()).items()}
    assert_equal(torch.load(done.output, weights_only=True), wanted)


class Shared(nn.Module):
    """One batch-norm under two names."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.BatchNorm1d(4)
        self.second = self.first
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.layer(self.first(x)))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_layer_with_two_names_is_new_under_both(tmp_path, suffix):
    model = Shared(1)
    path = tmp_path / f"avg{suffix}"
    if suffix == ".pt":
        torch.save({"model": model.state_dict(), "epoch": 1}, path)
    else:
        save(path, model.state_dict())
    data = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    done = recalibrate(path, Shared(2), data)
    found = load(done.output) if suffix != ".pt" else torch.load(done.output, weights_only=True)
    found = found if suffix != ".pt" else found["model"]
    assert_equal(found, expected(model, data))
    assert done.layers == 1
    assert not any("left out" in note for note in done.notes)


class Branched(nn.Module):
    """A batch-norm that no batch comes by."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_is_not_used_keeps_its_statistics_and_is_named(tmp_path):
    model = Branched()
    with torch.no_grad():
        model.unused.running_mean.fill_(3)
    path = save(tmp_path / "avg.safetensors", model.state_dict())
    done = recalibrate(path, Branched(), [torch.randn(5, 4)])
    assert load(done.output)["unused.running_mean"].tolist() == [3] * 4
    assert done.layers == 1
    assert done.notes == ("no batch came by unused (1 layers): as in the average",)


def test_a_file_without_counters_stays_without(tmp_path):
    model = network(1)
    state = {k: v for k, v in model.state_dict().items() if "tracked" not in k}
    path = save(tmp_path / "avg.safetensors", state)
    done = recalibrate(path, network(2), batches())
    wanted = {k: v for k, v in expected(model, batches()).items() if k in state}
    assert_equal(load(done.output), wanted)


def test_statistics_that_are_nan_in_the_average_can_be_recomputed(tmp_path):
    model = network(1)
    with torch.no_grad():
        model[1].running_var.fill_(float("nan"))
    path = save(tmp_path / "avg.safetensors", model.state_dict())
    done = recalibrate(path, network(2), batches())
    assert_equal(load(done.output), expected(model, batches()))
    # Of the nine channels those five have a variance to compare with.
    assert done.moved.channels == 5


def test_how_far_statistics_moved_is_told_in_old_deviations(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].running_mean.fill_(1)
        model[0].running_var.fill_(4)
    path = save(tmp_path / "avg.safetensors", model.state_dict())
    data = [torch.tensor([[2.0], [4.0], [6.0]])]
    done = recalibrate(path, nn.Sequential(nn.BatchNorm1d(1)), data)
    # Mean 4 and unbiased variance 4.
    assert done.moved.variance == (1.0, 1.0, 1.0)
    assert done.moved.mean == (1.5, 1.5, 1.5)


def test_a_limit_takes_the_first_batches_and_progress_counts_them(tmp_path):
    model = network(1)
    path = save(tmp_path / "avg.safetensors", model.state_dict())
    seen = []
    done = recalibrate(
        path, network(2), batches(), limit=2, on_batch=lambda *facts: seen.append(facts)
    )
    assert_equal(load(done.output), expected(model, batches()[:2]))
    assert seen == [(1, 2), (2, 2)]


def sabotaged(**changes):
    state = network(1).state_dict()
    return {**state, **changes}


@pytest.mark.parametrize(
    ("state", "model", "data", "error", "said"),
    [
        (network(1).state_dict(), nn.Sequential(nn.Linear(2, 2)), batches(), RequestError,
         "Sequential has no batch-norm with running statistics: there is nothing to recompute"),
        (network(1).state_dict(), nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)),
         batches(), RequestError, "its 1 layers keep none"),
        (network(1).state_dict(), network(2), [], RequestError, "The data gave no batches"),
        (network(1).state_dict(), network(2), [torch.zeros(2, 7)], RequestError,
         "Running the model on the data failed: RuntimeError"),
        (network(1).state_dict(), Shared(), batches(), MismatchError, "first.weight"),
        (network(1, head=False).state_dict(), network(2), batches(), MismatchError, "6.weight"),
        (network(1).state_dict(), network(2), [torch.full((4, 1, 6, 6), float("nan"))],
         NumericsError, "'1.running_mean' becomes nan, which is not finite"),
        (sabotaged(**{"0.weight": torch.full((4, 1, 3, 3), float("inf"))}), network(2), batches(),
         NumericsError, "Do the data or the averaged weights hold NaN or Inf?"),
        (sabotaged(**{"1.running_var": torch.ones(4, dtype=torch.float16)}), network(2),
         [1e4 * torch.randn(6, 1, 6, 6)], NumericsError, "overflows float16"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_and_leaves_nothing(tmp_path, state, model, data, error, said):
    path = save(tmp_path / "avg.safetensors", state)
    with pytest.raises(error) as caught:
        recalibrate(path, model, data)
    assert said in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["avg.safetensors"]


def test_the_output_is_checked_before_a_batch_is_asked_for(tmp_path):
    path = save(tmp_path / "avg.safetensors", network(1).state_dict())
    (tmp_path / "avg-bn.safetensors").write_text("old")

    def never():
        raise AssertionError("a batch was asked for")
        yield

    for output, said in (("", "exists already"), (path, "is an input"), (f"{path}/x", "no folder")):
        with pytest.raises(OutputError, match=said):
            recalibrate(path, network(2), never(), output=output)
    with pytest.raises(InputError, match="no such file"):
        recalibrate(tmp_path / "absent", network(2), never())
    assert (tmp_path / "avg-bn.safetensors").read_text() == "old"


MINE = """
import os, signal, torch
from torch import nn
print("noise from the import")

def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

def loader():
    print("noise from the data")
    for seed in range(3):
        yield torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)), torch.zeros(5)

def interrupted():
    yield torch.zeros(5, 3)
    os.kill(os.getpid(), signal.SIGINT)
    yield torch.zeros(5, 3)

def nothing():
    return []

def moving():
    os.makedirs("there", exist_ok=True)
    os.chdir("there")
    open("opened-at-start", "w").close()
    for batch in loader():
        # The code goes on where it went.
        open("opened-later", "w").close()
        yield batch

def plain():
    return nn.Linear(3, 4)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "avg.pt")
    return tmp_path


def bn(folder, *args, text=True):
    return subprocess.run(
        [sys.executable, "-m", "swavg", "bn", *map(str, args)],
        cwd=folder, capture_output=True, text=text, timeout=120, check=False,
    )  # fmt: skip


def test_the_command_prints_the_path_on_stdout_and_all_else_on_stderr(project):
    done = bn(project, "avg.pt", "--model", "mine:net", "--data", "mine.py:loader")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "avg-bn.pt\n"
    said = " ".join(done.stderr.split())
    assert "recomputed the statistics of 1 batch-norm layer of avg.pt on 3 batches (15 exam" in said
    assert "noise from the import" in said
    assert "times what they were; means moved by" in said
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.load_state_dict(torch.load(project / "avg.pt", weights_only=True)["model"])
    data = [torch.randn(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = torch.load(project / "avg-bn.pt", weights_only=True)
    # Another process may multiply in another order.
    torch.testing.assert_close(found["model"], expected(model, data))
    assert found["epoch"] == 3


def test_the_report_as_json_and_the_bytes_on_stdout_are_not_disturbed_by_noise(project):
    options = ["--model", "mine:net", "--data", "mine:loader"]
    done = bn(project, "avg.pt", *options, "--json", "--batches", 2)
    report = document(done.stdout)
    assert (report["output"], report["batches"], report["layers"]) == ("avg-bn.pt", 2, 1)
    assert len(report["moved"]["variance"]) == 3
    done = bn(project, "avg.pt", *options, "-o", "-", text=False)
    assert done.returncode == 0, done.stderr
    assert safetensors.torch.load(done.stdout)["1.num_batches_tracked"] == 3


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["avg.pt"], 2, "Missing option '--model'"),
        (["avg.pt", "--model", "mine:nett", "--data", "mine:loader"], 2, "Did you mean 'net'?"),
        (["avg.pt", "--model", "mine:net", "--data", "mine:nothing"], 2, "gave no batches"),
        (["avg.pt", "--model", "mine:plain", "--data", "mine:loader"], 2, "nothing to recompute"),
        (["no.pt", "--model", "mine:net", "--data", "mine:loader"], 4, "no such file"),
        (["avg.pt", "--model", "mine:net", "--data", "mine:loader", "-o", "avg.pt", "--force"], 5,
         "is an input"),
        (["avg.pt", "--model", "mine:net", "--data", "mine:loader", "--device", "gpu"], 2,
         "'gpu' is no device"),
        (["avg.pt", "--model", "mine:net", "--data", "mine:interrupted"], 130, "interrupted"),
    ],
)  # fmt: skip
def test_wrong_calls_have_their_exit_codes_and_write_nothing(
    project, args, code, said, monkeypatch, capsys
):
    monkeypatch.chdir(project)
    handlers = {each: signal.getsignal(each) for each in (2, 15, 1)}
    try:
        # In this process: torch would take seconds to start for each.
        with pytest.raises(SystemExit) as left:
            main(["bn", *args])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in ("mine", "mine_"):
            sys.modules.pop(name, None)
    stdout, stderr = capsys.readouterr()
    assert left.value.code == code, stderr
    assert said in " ".join(stderr.split())
    assert stdout == ""
    assert not debris(project)
    assert {"avg.pt", "mine.py"} >= {p.name for p in project.iterdir()} - {"__pycache__"}


@pytest.mark.parametrize("data", ["mine:moving", "mine.py:moving"])
def test_user_code_that_changes_the_folder_moves_nothing_of_ours(project, data):
    done = bn(project, "avg.pt", "--model", "mine:net", "--data", data, "-o", "out.pt")
    assert (done.returncode, done.stdout) == (0, "out.pt\n"), done.stderr
    assert (project / "out.pt").exists()
    assert sorted(os.listdir(project / "there")) == ["opened-at-start", "opened-later"]


@pytest.mark.parametrize("wrapped", ["checkpoint", "model"])
def test_a_prefix_of_the_checkpoint_or_the_model_is_taken_off(tmp_path, wrapped):
    class Inside(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x)

    model, before = network(1), "model." if wrapped == "checkpoint" else ""
    state = {f"{before}{name}": tensor for name, tensor in model.state_dict().items()}
    path = save(tmp_path / "avg.safetensors", state)
    user = network(2) if before else Inside(network(2))
    with pytest.raises(MismatchError, match=r"under 'model\.'"):
        recalibrate(path, user, batches())
    done = recalibrate(path, user, batches(), strip_prefix=["model."])
    assert_equal(load(done.output), expected(model, batches()))
    with pytest.raises(RequestError, match="begins no name of any input"):
        recalibrate(path, user, batches(), strip_prefix=["zzz."], force=True)
