"""TensorFlow's V2 bundles: what TensorFlow wrote is read, and what is written is what it reads."""

import json
import os
import re
import shutil
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import bundles
import ml_dtypes
import numpy as np
import pytest
from bundles import index
from safetensors.numpy import save_file

import swavg
from swavg.analysis import diff, inspect
from swavg.errors import InputError, NoWeightsError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.parts import open_whole
from swavg.formats.table import FORMATS
from swavg.formats.tensorflow import prefix_at
from swavg.formats.tensorflow.slices import slice_key
from swavg.series import discover
from swavg.storage.crc import crc_function
from swavg.testing import NAMES, FormatTests, assert_equal

FILES = Path(__file__).parents[1] / "frameworks" / "tensorflow" / "files"
EXPECTED = np.load(FILES / "expected.npz")
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
PREFIXES = sorted({key.split("/", 2)[0] + "/" + key.split("/", 2)[1] for key in EXPECTED.files})
RUNS = sorted({prefix.split("/")[0] for prefix in PREFIXES})
DATA = "ckpt.data-00000-of-00001"
GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"


def expected(prefix):
    """The arrays of the model that TensorFlow wrote there, by name."""
    own = [key for key in EXPECTED.files if key.startswith(f"{prefix}/")]
    return {key.removeprefix(f"{prefix}/"): EXPECTED[key] for key in own}


def widened(array):
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


class TestTensorFlow(FormatTests):
    format = FORMATS["tensorflow"]
    suffix = ""
    dtypes = tuple(bundles.NUMBERS)
    names = tuple(name for name in NAMES if name)
    lacks = {  # noqa: RUF012
        "order": "keys are sorted",
        "strides": "tensors are row-major",
        "ties": "each key has bytes of its own",
    }
    golden = {  # noqa: RUF012
        "ckpt.index": (
            b"\0\0\6\x08\1\x1a\2\x08\1\0\1\x0bn\x08\t\x12\0(\x085\xbb\xd7\x9f\x11\0\1\x15w\x08\1"
            b"\x12\x08\x12\2\x08\2\x12\2\x08\3 \x08(\x185\xc0\xdb=\x17\0\0\0\0\1\0\0\0\0"
            b"\xd2\xb2\xe4\xeb\0\0\0\0\1\0\0\0\0\xc0\xf2\xa1\xb0\0\1\2x\x009\0\0\0\0\1\0\0\0\0S\xee\x0f]>\x08K\x0e"
            + bytes(36)
            + b"W\xfb\x80\x8b$uG\xdb"
        ),
        DATA: b"\7\0\0\0\0\0\0\0\0\0\0\0\0\0\x80?\0\0\0@\0\0@@\0\0\x80@\0\0\xa0@",
    }

    def write(self, path, tensors):
        bundles.write(path, tensors)

    def read(self, path):
        return {k: v for k, v in bundles.read(path / "ckpt").items() if not isinstance(v, bytes)}

    def write_extras(self, path, tensors, number):
        bundles.write(path, tensors, {"note": b"the words of %d" % number})

    def read_extras(self, path):
        return bundles.read(path / "ckpt")["note"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_tensorflow_wrote_is_read(prefix):
    arrays = expected(prefix)
    checkpoint = open_checkpoint(FILES / prefix)
    assert list(checkpoint) == sorted(arrays)
    for name, array in arrays.items():
        assert_equal(name, widened(checkpoint.read(name)), array)
        if array.ndim:
            assert_equal(name, widened(checkpoint[name][1:2]), array[1:2])


@pytest.mark.parametrize("run", RUNS)
def test_an_average_holds_whole_tensors_and_all_else(tmp_path, run):
    prefixes = [prefix for prefix in PREFIXES if prefix.startswith(f"{run}/")]
    swavg.average([FILES / prefix for prefix in prefixes], output=tmp_path / "out")
    arrays = [expected(prefix) for prefix in prefixes]
    found = bundles.read(tmp_path / "out/ckpt")
    names = set(bundles.read_index(FILES / f"{prefixes[-1]}.index"))
    joined = {key for key in names if key.startswith(b"\0net/table\0")}
    assert bundles.read_index(tmp_path / "out/ckpt.index").keys() == names - joined
    for name, last in arrays[-1].items():
        own = found[name]
        if last.dtype.kind == "i":
            assert_equal(name, own, last)
            continue
        mean = np.mean([each[name].astype(np.float64) for each in arrays], axis=0)
        assert_equal(name, own, mean.astype(own.dtype))


def test_all_but_the_model_is_the_lasts(tmp_path):
    prefixes = [FILES / f"objects/model-{step}" for step in (10, 20)]
    report = swavg.average(prefixes, output=tmp_path / "out")
    assert "for TensorFlow its prefix is 'ckpt' in the output's folder" in report.notes
    assert any(
        re.fullmatch("left as in model-20: head_optimizer/.* and 4 more", note)
        for note in report.notes
    ), report.notes
    last, found = bundles.read(prefixes[-1]), bundles.read(tmp_path / "out/ckpt")
    assert found.keys() == last.keys()
    others = last.keys() - expected("objects/model-20")
    assert len(others) == 9
    assert all(np.array_equal(found[key], last[key]) for key in others)
    assert b"long" * 20 in found[f"net/words{VALUE}"]


def test_slices_are_kept_of_what_is_no_weight(tmp_path):
    for run, files in ("sharded", 4), ("columns", 1):
        prefix = FILES / run / "model.ckpt-200"
        swavg.average([FILES / run / "model.ckpt-100", prefix], output=tmp_path / run)
        old = bundles.read_index(prefix.with_name("model.ckpt-200.index"))
        new = bundles.read_index(tmp_path / run / "ckpt.index")
        slots = [key for key in old if b"/Adam" in key and key.startswith(b"\0")]
        assert len(slots) >= 4
        for key in slots:
            before, after = dict(bundles.fields(old[key])), dict(bundles.fields(new[key]))
            source = bundles.data_file(prefix, before.get(3, 0), files).read_bytes()
            start, size = before.get(4, 0), before[5]
            target = (tmp_path / run / DATA).read_bytes()[after.get(4, 0) :][:size]
            assert source[start : start + size] == target
            assert before[6] == after[6]


def test_the_models_variables_are_told_from_an_optimizers():
    checkpoint = open_checkpoint(FILES / "keras/ckpt-3")
    assert checkpoint.notes == ("taken are the model's: 8 of 25 variables",)
    assert len(checkpoint.extras.others) == 17
    assert checkpoint.extras.scalars == {"step": 30, "iter": 6}
    checkpoint = open_checkpoint(FILES / "saver/model.ckpt-200")
    assert "net/table/Adam_1" in checkpoint.extras.others
    assert "beta1_power" in checkpoint.extras.others
    assert checkpoint.extras.scalars == {"global_step": 200}


def test_names_alone_tell_slots_only_beside_their_variables(tmp_path):
    one = np.ones(2, np.float32)
    names = ("w", "w/Adam", "w/Adam_1", "v/Adam", "k", "k_slot_vr", "b/adam_m", "b", "beta1_power")
    bundles.write(tmp_path / "a", dict.fromkeys(names, one))
    assert list(open_checkpoint(tmp_path / "a")) == ["b", "k", "v/Adam", "w"]
    bundles.write(tmp_path / "b", dict.fromkeys(("w", "v/Adam", "beta1_power"), one))
    assert list(open_checkpoint(tmp_path / "b")) == ["beta1_power", "v/Adam", "w"]
    own = {"w": one, "w/Mine": one, "w/Mine_1": one, "beta1_power_1": one, "k": one}
    kernels = {"k/kernel": np.ones(3, np.float32), "k/kernel_1": np.ones(3, np.float32)}
    bundles.write(tmp_path / "c", own | kernels)
    assert list(open_checkpoint(tmp_path / "c")) == ["k", "k/kernel", "k/kernel_1", "w"]


def test_rows_of_lookup_tables_are_not_mixed(tmp_path):
    values = np.arange(3, dtype=np.float32)
    for number, order in enumerate(([0, 1, 2], [2, 0, 1])):
        rows = {"t-keys": np.arange(3)[order], "t-values": values[order], "w": values + number}
        heads = {"head-keys": values + number, "head-values": values + number}
        bundles.write(tmp_path / str(number), rows | heads)
    swavg.average([tmp_path / "0", tmp_path / "1"], output=tmp_path / "out")
    found = bundles.read(tmp_path / "out/ckpt")
    assert found["t-keys"].tolist() == found["t-values"].tolist() == [2, 0, 1]
    for name in ("w", "head-keys", "head-values"):
        assert found[name].tolist() == [0.5, 1.5, 2.5]


def node(*children, key=b"", slots=False):
    """An object by its children (name and number), or a variable by its key."""
    edges = (b"\x08" + bundles.number(at) + bundles.text(2, name) for name, at in children)
    own = b"".join(bundles.text(1, edge) for edge in edges)
    own += bundles.text(2, bundles.text(3, key)) if key else b""
    return own + (bundles.text(3, b"") if slots else b"")


def write_graph(folder, *nodes, arrays):
    bundles.write(folder, arrays, {GRAPH.decode(): b"".join(bundles.text(1, own) for own in nodes)})


ONE = np.ones(2, np.float32)


def test_the_weights_that_an_optimizer_trains_are_the_models():
    paths = [FILES / f"lists/ckpt-{number}" for number in (1, 2)]
    checkpoint = open_checkpoint(paths[0])
    assert "rng/_state_var" in checkpoint.extras.others
    assert sum("_trainable_variables" in name for name in checkpoint) == 6
    assert not any("/_variables/" in name or "_rate" in name for name in checkpoint)


@pytest.mark.parametrize("child", [b"net", b"optimizer", b""], ids=["named", "optimizer", "root"])
def test_an_optimizer_alone_is_no_model(tmp_path, child):
    top = [node((child, 1))] if child else []
    optimizer = node((b"iter", 1 + len(top)), slots=True)
    write_graph(tmp_path / "run", *top, optimizer, node(key=b"it"), arrays={"it": ONE, "m": ONE})
    with pytest.raises(NoWeightsError, match="without variables of a model"):
        open_checkpoint(tmp_path / "run")


def test_a_trainer_that_counts_is_no_optimizer(tmp_path):
    trainer = node((b"iter", 2), (b"learning_rate", 3), (b"net", 4))
    leaves = [node(key=b"it"), node(key=b"rate"), node((b"w", 5)), node(key=b"w")]
    arrays = {"it": np.array(3), "rate": ONE, "w": ONE}
    write_graph(tmp_path / "a", node((b"trainer", 1)), trainer, *leaves, arrays=arrays)
    assert "w" in list(open_checkpoint(tmp_path / "a"))
    both = node((b"iter", 2), (b"learning_rate", 3))
    write_graph(tmp_path / "b", node((b"net", 4), (b"opt", 1)), both, *leaves, arrays=arrays)
    assert list(open_checkpoint(tmp_path / "b")) == ["w"]


def test_only_integers_are_a_generators_state(tmp_path):
    key = f"filter/_state_var{VALUE}"
    nodes = node((b"filter", 1)), node((b"_state_var", 2), (b"w", 3)), node(key=key.encode())
    for array, names in (ONE, [key, "w"]), (np.arange(3), ["w"]):
        arrays = {key: array, "w": ONE}
        write_graph(tmp_path / "run", *nodes, node(key=b"w"), arrays=arrays)
        assert list(open_checkpoint(tmp_path / "run")) == names


# Places.


@pytest.mark.parametrize("path", ["ckpt-2", "ckpt-2.index", "alone", "named", "named.index"])
def test_a_prefix_an_index_and_a_folder_are_one(tmp_path, path):
    shutil.copytree(FILES / "keras", tmp_path, dirs_exist_ok=True)
    (tmp_path / "alone").mkdir()
    shutil.copytree(FILES / "keras", tmp_path / "named")
    # As it once was elsewhere.
    (tmp_path / "named/checkpoint").write_text('model_checkpoint_path: "/gone/ckpt-2"\n')
    shutil.copytree(tmp_path / "named", tmp_path / "named.index")
    for file in (FILES / "keras").glob("ckpt-2.*"):
        shutil.copy(file, tmp_path / "alone")
    checkpoint = open_checkpoint(tmp_path / path)
    assert checkpoint.path == str(tmp_path / path)
    name = f"optimizer/_trainable_variables/0{VALUE}"
    assert_equal(name, checkpoint.read(name), expected("keras/ckpt-2")[name])
    latest = "of 3 checkpoints in the folder ckpt-2 is taken, the latest"
    assert (latest in checkpoint.notes) == path.startswith("named")


def test_places_that_are_none(tmp_path):
    shutil.copytree(FILES / "keras", tmp_path / "run")
    (tmp_path / "run/checkpoint").unlink()
    (tmp_path / "words.index").write_text("of a book")
    os.mkfifo(tmp_path / "pipe.index")
    for path in ("run", "run/ckpt-4", "words", "words.index", "pipe", "pipe.index", "nowhere"):
        assert prefix_at(str(tmp_path / path)) is None, path
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "run/model.safetensors")
    (tmp_path / "run/ckpt-1.index").rename(tmp_path / "run/x")
    assert open_checkpoint(tmp_path / "run").format == "folder"


# Damage.


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("run", "name", "slices"),
    [
        ("saver", b"net/table", ()),
        ("saver", b"net/table/Adam", ()),
        ("columns", b"net/table", ((0, 2), (0, 65))),
        ("columns", b"net/table/Adam", ((0, 2), (0, 65))),
    ],
    ids=["weight", "slot", "slice", "slice-of-slot"],
)
def test_a_flipped_bit_is_an_error_and_nothing_is_written(tmp_path, run, name, slices):
    key = slice_key(name, slices) if slices else name
    shutil.copytree(FILES / run, tmp_path / "run")
    prefix = tmp_path / "run/model.ckpt-200"
    facts = dict(bundles.fields(bundles.read_index(prefix.with_name(f"{prefix.name}.index"))[key]))
    flip(bundles.data_file(prefix, 0, 1), facts.get(4, 0) + 5)
    with pytest.raises(InputError, match=r"is damaged: .* CRC-32C"):
        swavg.average([tmp_path / "run/model.ckpt-100", prefix], output=tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


READERS = {
    "read": lambda path, last: open_checkpoint(path).read("net/table"),
    "a row": lambda path, last: open_checkpoint(path)["net/table"][-1:],
    "inspect": lambda path, last: inspect(path, stats=True),
    "diff": lambda path, last: diff(last, path),
}


@pytest.mark.parametrize("run", ["saver", "columns"])
@pytest.mark.parametrize("reader", READERS)
def test_whatever_reads_a_tensor_is_told_that_it_is_damaged(tmp_path, run, reader):
    shutil.copytree(FILES / run, tmp_path / "run")
    prefix, last = tmp_path / "run/model.ckpt-200", tmp_path / "run/model.ckpt-100"
    READERS[reader](prefix, last)
    flip(bundles.data_file(prefix, 0, 1), bundle_offset(prefix, run) + 5)
    with pytest.raises(InputError, match=r"is damaged: its record 'net/table' .* CRC-32C"):
        READERS[reader](prefix, last)
    # What reads other tensors is not concerned, nor what reads none.
    assert inspect(prefix, stats=True, include=["other"]).tensors
    assert diff(last, prefix, values=False).matching


def bundle_offset(prefix, run):
    """Where the first bytes of ``net/table`` lie."""
    key = slice_key(b"net/table", ((0, 2), (0, 65))) if run == "columns" else b"net/table"
    return dict(
        bundles.fields(bundles.read_index(prefix.with_name(f"{prefix.name}.index"))[key])
    ).get(4, 0)


W = bundles.entry(1, (2,), 0, 0, bytes(8))
PARTS = {
    b"w": bundles.entry(1, (4,), slices=[[(0, 2)], [(2, 2)]]),
    slice_key(b"w", ((0, 2),)): W,
    slice_key(b"w", ((2, 2),)): bundles.entry(1, (2,), 0, 8, bytes(8)),
}


def test_slices_may_cut_each_dimension_also_in_a_part(tmp_path):
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    cuts = [((row, 1), columns) for row in (0, 1) for columns in ((0, 2), (2, 1))]
    for part, sign in ("unet", 1), ("vae", -1):
        entries, data = {b"w": bundles.entry(1, (2, 3), slices=cuts)}, b""
        for cut in cuts:
            (row, _), (first, count) = cut
            own = (sign * whole[row : row + 1, first : first + count]).tobytes()
            entries[slice_key(b"w", cut)] = bundles.entry(1, (1, count), 0, len(data), own)
            data += own
        (tmp_path / part).mkdir()
        (tmp_path / part / "ckpt.index").write_bytes(index(entries))
        (tmp_path / part / DATA).write_bytes(data)
        assert (open_checkpoint(tmp_path / part).read("w") == sign * whole).all()
    of_both = open_whole(tmp_path)
    assert [*of_both] == ["unet/w", "vae/w"]
    assert (of_both.read("vae/w") == -whole).all()


def graph(*nodes):
    data, crc = bundles.string(b"".join(bundles.text(1, node) for node in nodes))
    return data, {GRAPH: bundles.entry(7, (), 0, 0, data, crc)}


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


HOSTILE = {
    "two tensors overlap": index({b"v": W, b"w": bundles.entry(1, (2,), 0, 4, bytes(8))}),
    r"needs? 1,\d+ bytes, the file has 64": index({b"w": bundles.entry(1, (2,), 0, 999, bytes(8))}),
    "are not 8 bytes": index({b"w": bundles.entry(1, (3,), 0, 0, bytes(8))}),
    "impossible shape": index({b"w": bundles.entry(1, (1 << 40, 1 << 40), 0, 0, bytes(8))}),
    "a slice is missing": index(without(PARTS, slice_key(b"w", ((2, 2),)))),
    "do not tile it: its chunks leave out": index(
        {**PARTS, b"w": bundles.entry(1, (4,), slices=[[(0, 2)]])}
    ),
    "do not tile it: its chunks overlap": index(
        {**PARTS, b"w": bundles.entry(1, (4,), slices=[[(0, 2)], [(0, 2)], [(2, 2)]])}
    ),
    "other dimensions": index({**PARTS, b"w": bundles.entry(1, (4,), slices=[[(0, 2), (0, 1)]])}),
    "a key is no text": index({b"\xff": W}),
    "without variables": index({}),
    "it tells of 0 data files": index({b"w": W}, header=b"\x1a\2\x08\1"),
    "it tells of 4,294,967,295 data files": index({b"w": W}, shards=0xFFFFFFFF),
    "does not tell of": index({b"w": bundles.entry(1, (2,), 7, 0, bytes(8))}),
    "big-endian": index({b"w": W}, header=b"\x08\1\x10\1\x1a\2\x08\1"),
    "a later version": index({b"w": W}, header=b"\x08\1\x1a\2\x10\2"),
    "compressed": index({b"w": W}, kind=b"\1"),
    "is cut short": index({b"w": b"\x08"}),
    "entries": index({b"%06d" % at: W for at in range(400_001)}),
    "is no string, or far too large": index(
        {b"w": W, GRAPH: bundles.entry(1, (2,), 0, 8, bytes(8))}
    ),
    "is incomplete": index({b"w": W}, shards=2),
}


@pytest.mark.parametrize("problem", HOSTILE)
def test_what_is_crafted_is_refused(tmp_path, problem):
    (tmp_path / "ckpt.index").write_bytes(HOSTILE[problem])
    (tmp_path / DATA).write_bytes(bytes(64))
    begun = time.process_time()
    with pytest.raises(InputError, match=problem):
        open_checkpoint(tmp_path / "ckpt")
    assert time.process_time() - begun < 5


def test_each_tensor_is_checked_as_it_is_averaged(tmp_path):
    arrays = {f"w{at:04d}": np.full(1001 + at, at, np.float32) for at in range(500)}
    for number in (1, 2):
        bundles.write(tmp_path, arrays, name=f"ckpt-{number}")
    inputs = [tmp_path / f"ckpt-{number}" for number in (1, 2)]
    size = sum(array.nbytes for array in arrays.values())

    def read():
        return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])

    swavg.average(inputs, output=tmp_path / "warm", distances=False)
    before = read()
    swavg.average(inputs, output=tmp_path / "out", distances=False)
    assert read() - before < 2.5 * size
    # What is not averaged is the last one's, and is not read of the others.
    flip(tmp_path / "ckpt-1.data-00000-of-00001", size - 1)
    before = read()
    policy = swavg.Policy(exclude=("w04*",))
    swavg.average(inputs, output=tmp_path / "most", distances=False, policy=policy)
    assert read() - before < 2.2 * size


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([bundles.text(1, b"\x08\x63")], "names a node that is not there"),
        ([b"\x0a\x7f"], "is cut short"),
        ([b"\x0b"], "a field of the wire type 3"),
    ],
)
def test_a_crafted_graph_is_refused(tmp_path, nodes, problem):
    data, entries = graph(*nodes)
    (tmp_path / "ckpt.index").write_bytes(index(entries))
    (tmp_path / DATA).write_bytes(data)
    with pytest.raises(InputError, match=problem):
        open_checkpoint(tmp_path / "ckpt")
    flip(tmp_path / DATA, len(data) - 1)
    with pytest.raises(InputError, match="object graph does not have its CRC-32C"):
        open_checkpoint(tmp_path / "ckpt")


def test_keys_that_share_their_beginnings_do_not_grow_without_end(tmp_path):
    long, empty = b"k" * 8000, bundles.entry(1, (0,))
    size = bundles.number(len(empty))
    more = (bundles.number(8000) + b"\4" + size + b"%04d" % at + empty for at in range(9999))
    header = b"\0\0\6\x08\1\x1a\2\x08\1"
    first = header + b"\0" + bundles.number(len(long)) + size + long + empty
    (tmp_path / "ckpt.index").write_bytes(
        index({}, raw=first + b"".join(more) + struct.pack("<2I", 0, 1))
    )
    (tmp_path / DATA).write_bytes(bytes(64))
    tracemalloc.start()
    try:
        assert len(open_checkpoint(tmp_path / "ckpt")) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_keys_of_slices_are_tensorflows_ordered_code():
    known = {
        (64, 66): b"\xc0@\xc0B",
        (0, 63): b"\x80\xbf",
        (8192, 11808): b"\xe0 \0\xe0. ",
        (1048576, 1951424): b"\xf0\x10\0\0\xf0\x1d\xc6\xc0",
        (268435456, 31564544): b"\xf8\x10\0\0\0\xf1\xe1\xa3\0",
    }
    for extent, code in known.items():
        assert slice_key(b"t", (extent, (0, -1))) == b"\0t\0\1\1\2" + code + b"\x80\x7f"
    assert slice_key(b"a\0b", ()) == b"\0a\0\xffb\0\1\0"


# Writing.


def test_an_index_that_was_cut_short_is_missing_in_no_series(tmp_path):
    run = shutil.copytree(FILES / "keras", tmp_path / "run")
    os.truncate(run / "ckpt-2.index", 100)
    (run / "words.index").write_text("of a book")
    with pytest.raises(InputError, match=r"ckpt-2.index: is of .*, but no whole index"):
        swavg.average(discover([run]).paths, output=tmp_path / "out")


def test_a_folder_of_any_tensors_is_written(tmp_path):
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    save_file(arrays, tmp_path / "a.safetensors")
    policy = swavg.Policy(format="tensorflow")
    swavg.average([tmp_path / "a.safetensors"], output=tmp_path / "out", policy=policy)
    found = bundles.read(tmp_path / "out/ckpt")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert_equal(name, found[name], array)
    assert (tmp_path / "out/checkpoint").read_text() == (
        'model_checkpoint_path: "ckpt"\nall_model_checkpoint_paths: "ckpt"\n'
    )
    recipe = open_checkpoint(tmp_path / "out").extras.recipe
    assert json.loads(recipe)["inputs"] == ["a.safetensors"]
    for name in "", GRAPH.decode():
        save_file({name: arrays["w"]}, tmp_path / "b.safetensors")
        with pytest.raises(RequestError, match=f"cannot be called '{name}'"):
            swavg.average([tmp_path / "b.safetensors"], output=tmp_path / "b", policy=policy)


def test_the_graph_of_a_saver_goes_along(tmp_path):
    shutil.copytree(FILES / "saver", tmp_path / "run")
    (tmp_path / "run/model.ckpt-200.meta").write_bytes(b"graph")
    swavg.average([tmp_path / f"run/model.ckpt-{n}00" for n in (1, 2)], output=tmp_path / "out")
    assert (tmp_path / "out/ckpt.meta").read_bytes() == b"graph"


def test_many_tensors_are_written_in_many_blocks(tmp_path):
    arrays = {f"layer{at:05d}/kernel": np.full(3, at, np.float32) for at in range(2000)}
    bundles.write(tmp_path / "in", arrays)
    swavg.average([tmp_path / "in"] * 2, output=tmp_path / "out")
    found = bundles.read(tmp_path / "out/ckpt")
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert (tmp_path / "out/ckpt.index").stat().st_size < 2000 * 50


def test_without_google_crc32c_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    crc_function.cache_clear()
    try:
        with pytest.raises(RequestError, match=r"pip install 'swavg\[tf\]'"):
            open_checkpoint(FILES / "keras/ckpt-1")
    finally:
        crc_function.cache_clear()
