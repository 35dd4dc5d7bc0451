"""Averages put into a model: the same bits as a file and load_state_dict, and nothing by halves."""

import os
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from make import python
from ranks import ranks
from torch import nn

import swavg
from swavg.errors import InputError, MismatchError, NumericsError, RequestError
from swavg.training import apply_swa, save_snapshot
from swavg.training.model_plan import ModelPlan

torch.set_num_threads(1)


class Net(nn.Module):
    """Every kind of state: convolution, batch statistics, a tie, a scalar, buffers."""

    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.embedding = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("count", torch.tensor([seed, 7]))
        self.register_buffer("cache", torch.full((3,), float(seed)), persistent=False)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.num_batches_tracked += 10 * seed
        self.to(dtype)


def saved(folder, count=3, suffix="safetensors", dtype=torch.float32):
    paths = []
    for seed in range(1, count + 1):
        path = folder / f"step-{seed}.{suffix}"
        if suffix == "pt":
            torch.save(Net(seed, dtype).state_dict(), path)
        else:
            save_snapshot(path, Net(seed, dtype), step=seed)
        paths.append(str(path))
    return paths


def averaged(paths, weights=None, **more):
    """The bits of swavg.average, as a state dict."""
    out = os.path.join(os.path.dirname(paths[0]), "average.safetensors")
    policy = replace(more.pop("policy", swavg.Policy()), integers="last")
    swavg.average(paths, weights, output=out, force=True, policy=policy, **more)
    return safetensors.torch.load_file(out)


def same(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def copy(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
WEIGHTS = [None, (0.5, 0.2, 0.3), (1.5, -0.25, -0.25), (0, 0, 1)]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_those_of_average_and_load_state_dict(dtype, weights, tmp_path):
    paths = saved(tmp_path, dtype=dtype)
    model = Net(9, dtype)
    assert apply_swa(model, paths, weights) == ()
    same(model.state_dict(), averaged(paths, weights))
    assert model.head.weight is model.embedding.weight
    assert model.cache.tolist() == [9.0] * 3


@pytest.mark.slow
def test_other_formats_and_wrapped_names_give_the_same_bits(tmp_path):
    expected = averaged(saved(tmp_path))
    (tmp_path / "pt").mkdir()
    nested = []
    for index, path in enumerate(saved(tmp_path / "pt", suffix="pt")):
        state = {f"module.{name}": tensor for name, tensor in torch.load(path).items()}
        nested.append(str(tmp_path / f"nested{index}.pt"))
        torch.save({"epoch": 3, "model": state}, nested[-1])
    inner = Net(9)
    apply_swa(nn.DataParallel(torch.compile(inner)), nested)
    same(inner.state_dict(), expected)
    inner = Net(9)
    apply_swa(inner, nested, key="model")
    same(inner.state_dict(), expected)


def test_a_child_called_module_is_found_under_its_own_name(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    path = save_snapshot(tmp_path / "a.safetensors", source := Own())
    model = Own()
    apply_swa(model, [path])
    same(model.state_dict(), source.state_dict())


def test_files_of_another_float_are_rounded_once_to_the_models(tmp_path):
    paths = saved(tmp_path, dtype=torch.bfloat16)
    model = Net(9)
    apply_swa(model, paths, (0.3, 0.3, 0.4))
    expected = averaged(paths, (0.3, 0.3, 0.4), policy=swavg.Policy(dtype="float32"))
    same(model.state_dict(), expected)
    assert not torch.equal(model.conv.weight, model.conv.weight.bfloat16().float())


def test_other_memory_layouts_are_written_in_their_places(tmp_path):
    def net(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(4, 6))
        model[0].to(memory_format=torch.channels_last)
        model[1].weight = nn.Parameter(torch.randn(4, 6).t())
        return model

    paths = []
    for seed in (1, 2):
        paths.append(str(tmp_path / f"{seed}.pt"))
        torch.save(net(seed).state_dict(), paths[-1])
    model = net(3)
    assert not model[0].weight.is_contiguous()
    apply_swa(model, paths)
    for name, tensor in model.state_dict().items():
        one, other = (torch.load(path)[name].double() for path in paths)
        assert torch.equal(tensor, ((one + other) / 2).float())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_blocks_join_without_a_seam(tmp_path):
    tensors = [
        {"weight": torch.randn(3, 200_001, generator=torch.Generator().manual_seed(seed))}
        for seed in (1, 2)
    ]
    paths = [
        str(save_snapshot(tmp_path / f"step-{index}.safetensors", each))
        for index, each in enumerate(tensors)
    ]
    model = nn.Linear(200_001, 3, bias=False)
    apply_swa(model, paths)
    same(model.state_dict(), averaged(paths))
    transposed = nn.Linear(200_001, 3, bias=False)
    transposed.weight = nn.Parameter(torch.zeros(200_001, 3).t())
    apply_swa(transposed, paths)
    assert torch.equal(transposed.weight, model.weight)


def test_a_tie_is_found_by_either_name(tmp_path):
    state = Net(4).state_dict()
    paths = []
    for dropped in ("head.weight", "embedding.weight"):
        kept = {name: tensor for name, tensor in state.items() if name != dropped}
        paths.append(save_snapshot(tmp_path / f"{dropped}.safetensors", kept))
    model = Net(9)
    assert apply_swa(model, paths) == ()
    same(model.state_dict(), state)


def test_complex_and_8_bit_floats_and_empty_parameters(tmp_path):
    class Odd(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.wave = nn.Parameter(torch.randn(5, dtype=torch.complex64))
            self.tiny = nn.Parameter(torch.randn(6).to(torch.float8_e4m3fn), requires_grad=False)
            self.none = nn.Parameter(torch.empty(0, 4))

    paths = [str(save_snapshot(tmp_path / f"step-{seed}.safetensors", Odd(seed))) for seed in "123"]
    model = Odd(9)
    apply_swa(model, paths)
    expected = averaged(paths)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


def test_adapters_for_a_model_of_peft_are_an_error_of_few_words(tmp_path):
    def adapter():
        return nn.ModuleDict({"default": nn.Linear(2, 2, bias=False)})

    layers = [nn.ModuleDict({"base": nn.Linear(2, 2), "lora_A": adapter()}) for _ in range(9)]
    model = nn.ModuleDict({"base_model": nn.ModuleList(layers)})
    file = {f"base_model.{i}.lora_A.weight": torch.ones(2, 2) for i in range(9)}
    path = save_snapshot(tmp_path / "adapter_model.safetensors", file)
    with pytest.raises(MismatchError, match=r"and 23 more.*PeftModel\.from_pretrained") as caught:
        apply_swa(model, [path])
    assert len(str(caught.value)) < 600


def test_missing_and_misshapen_are_all_named_before_anything_is_touched(tmp_path):
    paths = saved(tmp_path)
    state = Net(2).state_dict()
    del state["scale"], state["norm.bias"]
    state["conv.weight"] = torch.ones(4, 2, 1, 1)
    state["count"] = torch.ones(2)
    save_snapshot(paths[1], state, force=True)
    model = Net(9)
    before = copy(model)
    with pytest.raises(MismatchError) as caught:
        apply_swa(model, paths)
    same(model.state_dict(), before)
    text = str(caught.value)
    for words in (
        "4 of the model's 10 tensors",
        "'scale' is missing in step-2.safetensors",
        "'norm.bias' is missing",
        "'conv.weight' is [4, 2, 3, 3] in the model, [4, 2, 1, 1] in step-2.safetensors",
        "'count' is int64 in the model, float32 in step-2.safetensors",
        "strict=False",
    ):
        assert words in text
    assert {each.name for each in caught.value.differences} == {
        "scale", "norm.bias", "conv.weight", "count",
    }  # fmt: skip


def test_not_strict_keeps_the_models_own_values_and_returns_their_names(tmp_path):
    paths = saved(tmp_path)
    expected = averaged(paths)
    state = Net(2).state_dict()
    del state["scale"], state["head.weight"], state["embedding.weight"]
    save_snapshot(paths[1], state, force=True)
    model = Net(9)
    kept = apply_swa(model, paths, strict=False)
    assert kept == ("scale", "embedding.weight", "head.weight")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, Net(9).state_dict()[name] if name in kept else expected[name])


def test_of_another_model_nothing_is_taken_even_if_not_strict(tmp_path):
    path = save_snapshot(tmp_path / "a.safetensors", {"other": torch.ones(3)})
    with pytest.raises(MismatchError, match="Are they of this model"):
        apply_swa(nn.Linear(2, 2), [path], strict=False)


def test_weights_follow_the_rules_of_the_command_line(tmp_path):
    paths = saved(tmp_path)
    model = Net(9)
    before = copy(model)
    with pytest.raises(RequestError, match=r"sum to 1\.5, not 1"):
        apply_swa(model, paths, (0.5, 0.5, 0.5))
    with pytest.raises(RequestError, match="2 weights for 3 checkpoints"):
        apply_swa(model, paths, (0.5, 0.5))
    with pytest.raises(RequestError, match="weight nan"):
        apply_swa(model, paths, (float("nan"), 0, 0))
    with pytest.raises(RequestError, match="No checkpoints"):
        apply_swa(model, [])
    with pytest.raises(RequestError, match="list of paths"):
        apply_swa(model, paths[0])
    with pytest.raises(RequestError, match="'scale' is on the meta device"):
        apply_swa(Net().to("meta"), paths)
    same(model.state_dict(), before)
    apply_swa(model, paths, (1, 1, 2), sum_to="normalize")
    same(model.state_dict(), averaged(paths, (1, 1, 2), sum_to="normalize"))
    apply_swa(model, paths, (1, -1, 1.5), sum_to="raw")
    same(model.state_dict(), averaged(paths, (1, -1, 1.5), sum_to="raw"))


def test_nan_is_refused_unless_it_is_let_through_and_a_common_inf_stays(tmp_path):
    def files(*values):
        tensors = [{"weight": torch.tensor([[1.0, value]])} for value in values]
        return [
            str(save_snapshot(tmp_path / f"{index}.safetensors", each, force=True))
            for index, each in enumerate(tensors)
        ]

    model = nn.Linear(2, 1, bias=False)
    with pytest.raises(NumericsError, match=r"1\.safetensors: 'weight' at \[0, 1\] is NaN"):
        apply_swa(model, files(0.0, float("nan")))
    apply_swa(model, files(0.0, float("nan")), allow_nonfinite=True)
    assert model.weight[0, 0] == 1
    assert model.weight[0, 1].isnan()
    apply_swa(model, files(float("-inf"), float("-inf")))
    assert model.weight.tolist() == [[1.0, float("-inf")]]
    with pytest.raises(NumericsError, match="overflows float32"):
        apply_swa(model, files(3e38, 3e38), (2, 2), sum_to="raw")


class Quantised(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.register_buffer("weight", torch.full((1, 2), seed, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.full((1,), float(seed)))


def spectral(seed=0):
    torch.manual_seed(seed)
    return torch.nn.utils.spectral_norm(nn.Linear(2, 1))


def test_what_is_no_plain_weight_is_refused_or_told(tmp_path):
    def files(make):
        return [
            save_snapshot(tmp_path / f"{make.__name__}{n}.safetensors", make(n)) for n in (1, 2)
        ]

    model = Quantised()
    with pytest.raises(MismatchError, match="quantised weights cannot be averaged"):
        apply_swa(model, files(Quantised))
    assert not model.weight.any()
    model = spectral()
    with pytest.warns(UserWarning, match="vectors of spectral norm"):
        apply_swa(model, files(spectral))
    assert model.weight_v.equal(spectral(2).weight_v)
    assert torch.allclose(
        model.weight_orig, (spectral(1).weight_orig + spectral(2).weight_orig) / 2
    )


def test_gradients_and_optimizer_survive_and_autograd_notices(tmp_path):
    paths = saved(tmp_path)
    model = Net(9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = (model.scale * model.scale).sum()
    identity = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    apply_swa(model, paths)
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == identity
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    (model.scale * 2).backward()
    optimizer.step()


def test_a_plan_goes_anywhere_on_the_plane_and_back(tmp_path):
    paths = saved(tmp_path)
    states = [safetensors.torch.load_file(path) for path in paths]
    model = Net(9)
    plan = ModelPlan(model, paths)
    assert plan.kept == ()
    for weights in [(1, 0, 0), (-0.5, 1.25, 0.25), (0, 0, 0), (2, 2, -1), (1, 0, 0)]:
        plan.apply(weights)
        for name, tensor in model.state_dict().items():
            columns = [state[name].double() for state in states]
            if tensor.is_floating_point():
                expected = sum(w * c for w, c in zip(weights, columns, strict=True)).float()
            else:
                expected = states[-1][name]
            assert torch.equal(tensor, expected), name
    same(
        {name: t for name, t in model.state_dict().items() if t.is_floating_point()},
        {name: t for name, t in states[0].items() if t.is_floating_point()},
    )
    plan.apply((1 / 3,) * 3)
    same(model.state_dict(), averaged(paths))


def test_a_plan_takes_open_checkpoints_and_follows_a_model_that_moves(tmp_path):
    paths = saved(tmp_path)
    model = Net(9)
    plan = ModelPlan(model, [swavg.open_checkpoint(path) for path in paths])
    model.double()
    plan.apply((1 / 3,) * 3)
    expected = averaged(paths, policy=swavg.Policy(dtype="float64"))
    same(model.state_dict(), expected)
    plan.apply((0, 0, 1))
    assert torch.equal(model.scale, Net(3).scale.double())


def test_a_file_that_changes_is_noticed(tmp_path):
    paths = saved(tmp_path)
    plan = ModelPlan(Net(9), paths)
    save_snapshot(paths[0], Net(5), force=True)
    with pytest.raises(InputError, match="changed while it was read"):
        plan.apply((1 / 3,) * 3)


@pytest.mark.slow
def test_no_second_copy_of_the_model_is_held(tmp_path):
    script = """
import resource, sys, torch
from torch import nn
from swavg.training import apply_swa, save_snapshot
torch.set_num_threads(1)
folder = sys.argv[1]
model = nn.Linear(4096, 8192, bias=False)
small = nn.Linear(8, 8, bias=False)
save_snapshot(f"{folder}/s.safetensors", small)
apply_swa(small, [f"{folder}/s.safetensors"] * 2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
paths = [str(save_snapshot(f"{folder}/{i}.safetensors", model)) for i in range(2)]
apply_swa(model, paths)
print(peak() - before)
"""
    result = python(script, str(tmp_path))
    assert result.returncode == 0, result.stderr
    # The model has 128 MiB.
    assert float(result.stdout) < 32


_SHARDED = """
from torch.distributed.tensor import Shard
from swavg.training import apply_swa, save_snapshot
def net(seed, placement=None):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 7, bias=False))
    place = placement and (lambda parameter: placement if parameter.ndim > 1 else None)
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)), shard_placement_fn=place)
paths = [str(save_snapshot(f"{folder}/step-{seed}.safetensors", net(seed))) for seed in (1, 2, 3)]
for name, placement in (("rows", None), ("columns", Shard(1))):
    model = net(9, placement)
    model.eval()
    model(torch.zeros(2, 4))
    apply_swa(model, paths, (0.5, 0.25, 0.25))
    save_snapshot(f"{folder}/{name}.safetensors", model)
    torch.save(model(torch.ones(2, 4)), f"{folder}/{name}.{rank}.pt")
"""


@pytest.mark.slow
def test_sharded_models_get_their_shards(tmp_path):
    ranks(_SHARDED, tmp_path)
    paths = [str(tmp_path / f"step-{seed}.safetensors") for seed in (1, 2, 3)]
    expected = averaged(paths, (0.5, 0.25, 0.25))
    whole = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 7, bias=False)).eval()
    whole.load_state_dict(expected)
    for name in ("rows", "columns"):
        same(safetensors.torch.load_file(tmp_path / f"{name}.safetensors"), expected)
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}.{rank}.pt")
            torch.testing.assert_close(found, whole(torch.ones(2, 4)))


class Inside(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.model = Net(seed)


@pytest.mark.parametrize("prefix", ["model.", ["model."], ("model",)])
def test_a_prefix_does_not_count_in_files_or_model(tmp_path, prefix):
    bare = saved(tmp_path)
    state = {f"module.model.{name}": tensor for name, tensor in Net(4).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    torch.save(Net(4).state_dict(), tmp_path / "same.pt")
    paths, expected = [*bare, tmp_path / "lightning.ckpt"], [*bare, str(tmp_path / "same.pt")]
    model, inside = Net(9), Inside(9)
    with pytest.raises(MismatchError, match=r"of the model are in lightning.ckpt under 'model\.'"):
        apply_swa(model, paths)
    with pytest.raises(MismatchError, match=r"of step-1.safetensors are in the model under"):
        apply_swa(inside, bare)
    assert apply_swa(model, paths, strip_prefix=prefix) == ()
    assert apply_swa(inside, paths, strip_prefix=prefix) == ()
    same(model.state_dict(), averaged(expected))
    same(inside.model.state_dict(), averaged(expected))
    opened = [swavg.open_checkpoint(path) for path in paths]
    apply_swa(inside, opened, strip_prefix=prefix)
    same(inside.model.state_dict(), averaged(expected))


def test_a_prefix_of_nothing_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"'modle\.' begins no name of any input"):
        apply_swa(Net(), saved(tmp_path), strip_prefix="modle.")


def test_modules_called_module_do_not_take_the_tensors_of_others(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.a.module = nn.Linear(2, 2, bias=False)

    one, model = Odd(), Odd()
    torch.save({f"module.{n}": t for n, t in one.state_dict().items()}, tmp_path / "ddp.pt")
    apply_swa(model, [tmp_path / "ddp.pt"])
    same(model.state_dict(), one.state_dict())
    torch.save({"a.weight": one.a.weight}, tmp_path / "lacks.pt")
    with pytest.raises(MismatchError, match=r"'a\.module\.weight' is missing"):
        apply_swa(model, [tmp_path / "lacks.pt"])
