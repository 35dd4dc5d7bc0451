"""Models inside wrappers: the names without them, and what cannot be averaged."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from training_models import Tied, assert_same, network, snapshot, wander

from swavg.errors import RequestError
from swavg.training.ema import EMA
from swavg.training.wrapped import full, local, modules, part_of, plain_names, unwrap


def compiled(model):
    return torch.compile(model, backend="eager")


def test_wrappers_are_taken_off_in_any_order():
    model = network()
    for wrapped in (
        model,
        compiled(model),
        nn.DataParallel(model),
        compiled(nn.DataParallel(compiled(model))),
    ):
        assert unwrap(wrapped) is model


def test_a_module_of_the_users_that_is_called_module_is_no_wrapper():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

    model = Wrapper()
    assert unwrap(model) is model
    names = list(plain_names(model).values())
    assert sorted(names) == sorted(model.state_dict())
    ema = EMA(model, 0.5)
    assert_same(ema.averaged(), snapshot(model))


def test_wrappers_inside_the_model_do_not_show_in_names():
    model = network()
    plain = list(model.state_dict())
    model[0] = compiled(model[0])
    model[1] = checkpoint_wrapper(model[1])
    model[4] = nn.DataParallel(model[4])
    assert sorted(set(plain_names(model)) - set(plain)) == [
        "0._orig_mod.bias", "0._orig_mod.weight",
        "1._checkpoint_wrapped_module.bias", "1._checkpoint_wrapped_module.num_batches_tracked",
        "1._checkpoint_wrapped_module.running_mean", "1._checkpoint_wrapped_module.running_var",
        "1._checkpoint_wrapped_module.weight",
        "4.module.bias", "4.module.weight",
    ]  # fmt: skip
    ema = EMA(model, 0.5)
    wander(model, 1, ema.update)
    assert list(ema.averaged()) == plain
    network().load_state_dict(ema.averaged())


def test_modules_come_in_the_order_of_named_modules_with_all_their_names():
    model = Tied()
    found = [(plain.removesuffix("."), module) for _, plain, module in modules(compiled(model))]
    assert found == list(model.named_modules(remove_duplicate=False))


def test_the_first_fsdp_is_refused():
    class FullyShardedDataParallel(nn.Module):
        pass

    FullyShardedDataParallel.__module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"
    with pytest.raises(RequestError, match="FSDP2"):
        EMA(FullyShardedDataParallel())


def test_plain_tensors_are_their_own_parts():
    tensor = torch.ones(2, requires_grad=True)
    assert local(tensor).data_ptr() == tensor.data_ptr()
    assert not local(tensor).requires_grad
    assert full(tensor, tensor) is tensor
    assert part_of(tensor, tensor) is tensor
