import pytest
from checkpoints import save, state
from run_of_five import STEPS


@pytest.fixture
def run(tmp_path):
    """A run of five checkpoints, whose names sort differently from their steps."""
    for step in STEPS:
        save(tmp_path / "run" / f"step_{step}-val_loss={1 / step:.3f}.safetensors", state(step))
    return tmp_path
