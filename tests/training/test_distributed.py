"""DDP and FSDP2 in two processes: what they average is what one process averages."""

from pathlib import Path

import pytest
import torch
from checkpoints import load
from ranks import ranks
from training_models import Words, assert_same, averaged_training, one_thread

from swavg.engine.recipe import recipe_of
from swavg.training.ema import EMA

pytestmark = pytest.mark.slow

HERE = str(Path(__file__).parent.parent)

CODE = f"""
sys.path.insert(0, {HERE!r})
import training_models as models
from swavg.training.snapshot import save_snapshot
from swavg.training.ema import EMA
from swavg.training.power import PowerEMA

def fsdp(model):
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.body, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def compiled_ddp(model):
    return torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager")

def share(batch):
    return batch.view(2, -1)[rank]

states = {{}}

def at_step(step, model, ema, swa):
    if step == 5:
        # As if the run ended here and was taken up again: another model, put where this one is.
        states["ema"] = {{k: v for k, v in ema.state_dict().items()}}
        states["swa"] = swa.state_dict()
        torch.save(states["ema"], f"{{folder}}/ema-{{rank}}.pt")
        ema.register()
        ema.load_state_dict(torch.load(f"{{folder}}/ema-{{rank}}.pt", weights_only=True))
        kept = {{name: t.clone() for name, t in states["swa"]["averages"].items()}}
        swa.update()
        swa.load_state_dict(states["swa"] | {{"averages": kept}})

found = models.averaged_training(WRAP, share, at_step)
torch.save(found, f"{{folder}}/found-{{rank}}.pt")
save_snapshot(f"{{folder}}/ema.safetensors", found["averaged ema"], step=8)

model = WRAP(models.Words())
power = PowerEMA(model, (0.1,))
power.update()
with power.applied():
    save_snapshot(f"{{folder}}/applied.safetensors", model)
power.save(f"{{folder}}/power")
"""


@pytest.fixture(scope="module")
def alone():
    with one_thread():
        return averaged_training(lambda model: model, lambda batch: batch)


def close(found, expected):
    for name, value in expected.items():
        if isinstance(value, dict):
            assert list(found[name]) == list(value)
            close(found[name], value)
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapping", ["compiled_ddp", "fsdp"])
def test_two_ranks_average_what_one_process_does(tmp_path, alone, wrapping):
    ranks(CODE.replace("WRAP", wrapping), tmp_path)
    both = [torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2)]
    for found in both:
        close(found, alone)
        # Evaluating the average leaves the model as it was, to the bit.
        for step in (4, 8):
            assert torch.equal(found[f"own {step}"], found[f"own again {step}"])
            assert not torch.equal(found[f"own {step}"], found[f"ema {step}"])
        assert torch.equal(found["own 8"], found["own at last"])
    for kind in ("averaged ema", "averaged swa"):
        assert_same(both[0][kind], both[1][kind])
        assert list(both[0][kind]) == list(Words().state_dict())
    # Rank 0 has written what every rank has.
    written = load(tmp_path / "ema.safetensors")
    assert_same(dict(sorted(written.items())), dict(sorted(both[0]["averaged ema"].items())))
    (power,) = (tmp_path / "power").iterdir()
    assert recipe_of(power)["profile"]["sigma_rel"] == 0.1
    assert_same(load(power), load(tmp_path / "applied.safetensors"))
    # A state that two ranks saved goes on in one process.
    state = torch.load(tmp_path / "ema-0.pt", weights_only=True)
    ema = EMA(Words(), 0.7)
    ema.load_state_dict(state)
    assert (ema.num_updates, ema.step) == (5, 5)
    assert_same(ema.state_dict()["averages"], state["averages"])
