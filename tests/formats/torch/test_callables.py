"""What torch would run to load a pickle is named, and what is not torch's own is told apart."""

import argparse
import os

import torch
from torch._weights_only_unpickler import _get_allowed_globals
from torch_reading import tensor_pickle, torch_zip

from swavg.formats import open_checkpoint
from swavg.formats.torch.callables import callables
from swavg.formats.torch.objects import Global


def test_what_torch_takes_by_default_is_not_foreign():
    allowed = [Global(*name.rpartition(".")[::2]) for name in _get_allowed_globals()]
    assert len(allowed) > 100
    usual, foreign = callables(allowed)
    assert foreign == ()
    assert "torch._utils._rebuild_tensor_v2" in usual
    # What is no function and no class that is called is left out.
    assert not [name for name in usual if name.endswith("Storage") or "float" in name]


def test_all_else_is_foreign():
    names = [
        "os.system", "torch.load", "torch.hub.load", "torch.storage._load_from_bytes",
        "torch.serialization.load", "torch.float_power", "builtins.eval", "collections.defaultdict",
        "torch.utils.Storage",
    ]  # fmt: skip
    assert callables(Global(*name.rpartition(".")[::2]) for name in names) == (
        (), tuple(sorted(names)),
    )  # fmt: skip
    assert not set(names) & set(_get_allowed_globals())


def test_a_file_says_what_torch_would_run_in_both_formats(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    holds = {"state_dict": {"w": torch.ones(3)}, "args": argparse.Namespace(lr=1), "x": Runs()}
    for name, zipped in (("a.pt", True), ("b.pt", False)):
        torch.save(holds, tmp_path / name, _use_new_zipfile_serialization=zipped)
        extras = open_checkpoint(tmp_path / name).extras
        assert extras.callables == ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2")
        assert extras.foreign == ("argparse.Namespace", "posix.mkdir")
    assert not (tmp_path / "made").exists()


def test_sets_and_large_texts_name_nothing(tmp_path):
    torch.save({"w": torch.ones(3), "s": frozenset({1}), "t": "x" * 5_000_000}, tmp_path / "a.pt",
               pickle_protocol=4)  # fmt: skip
    extras = open_checkpoint(tmp_path / "a.pt").extras
    assert extras.callables == ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2")
    assert extras.foreign == ()


def test_a_file_that_names_any_number_of_them_is_kept_short(tmp_path):
    named = b"".join(b"cm%04d\n%s\n0" % (i, b"n" * 5000) for i in range(3000))
    (tmp_path / "a.pt").write_bytes(torch_zip(b"\x80\x02" + named + tensor_pickle()[2:]))
    foreign = open_checkpoint(tmp_path / "a.pt").extras.foreign
    assert len(foreign) == 1000
    assert foreign[0] == "m0000." + 194 * "n"
