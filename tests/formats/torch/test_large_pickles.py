"""Vocabularies in checkpoints: read once, and not slower than torch reads them."""

import collections
import time
from pathlib import Path

import pytest
import torch
from command_line import done

from swavg import open_checkpoint
from swavg.formats.torch import archive, legacy

COUNT = 50_000
VOCABULARIES = {
    "words": lambda: {"vocab": {f"word{i}": i for i in range(COUNT)}},
    "counter": lambda: {"freqs": collections.Counter({f"word{i}": i for i in range(COUNT)})},
    "list": lambda: {"itos": [f"word{i}" for i in range(COUNT)]},
    "merges": lambda: {"merges": [(f"a{i}", f"b{i}") for i in range(COUNT)]},
    "scores": lambda: {"pieces": [(f"p{i}", -0.37 * i) for i in range(COUNT)]},
    "nested": lambda: {"v": {f"w{i}": {"id": i, "count": 3 * i} for i in range(COUNT // 4)}},
    "numbers": lambda: {"ids": list(range(4 * COUNT))},
    "bytes": lambda: {"ranks": {f"word{i}".encode(): i for i in range(COUNT)}},
}


def save(path: Path, number: int, vocabulary: dict[str, object], *, zipped: bool = True) -> Path:
    content = {"model": {"w": torch.full((3,), float(number))}, **vocabulary, "step": number}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def seconds(call) -> float:
    """Of processor time, the best of three."""
    found = []
    for _ in range(3):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_a_vocabulary_costs_no_more_than_torch_takes(tmp_path, kind, zipped):
    path = save(tmp_path / "a.pt", 1, VOCABULARIES[kind](), zipped=zipped)
    own = seconds(lambda: open_checkpoint(path))
    assert own <= seconds(lambda: torch.load(path, weights_only=True))


@pytest.fixture
def large(monkeypatch):
    """The files whose large pickles were read; which have some, the bytes say."""
    read = []
    for module in (archive, legacy):

        def counted(path, data, _unpickle=module.unpickle, **more):
            found = _unpickle(path, data, **more)
            if found.nbytes > 1000:
                read.append(Path(path).name)
            return found

        monkeypatch.setattr(module, "unpickle", counted)
    return read


@pytest.mark.parametrize("zipped", [True, False])
def test_each_input_is_unpickled_once_and_the_output_not_again(tmp_path, large, zipped):
    vocabulary = {"vocab": {f"word{i}": i for i in range(500)}}
    for number in (1, 2, 3):
        save(tmp_path / f"{'abc'[number - 1]}.pt", number, vocabulary, zipped=zipped)
    # The steps are inside: the series is sorted by them before it is averaged.
    done("average", tmp_path, "--last", "2", "-o", tmp_path / "new" / "o.pt")
    assert sorted(large) == ["a.pt", "b.pt", "c.pt"]
    found = torch.load(tmp_path / "new" / "o.pt", weights_only=True)
    assert torch.equal(found["model"]["w"], torch.full((3,), 2.5))
    assert found["vocab"] == vocabulary["vocab"]


def test_equal_pickles_are_read_once(tmp_path, large):
    vocabulary = {"vocab": {f"word{i}": i for i in range(500)}}
    paths = [save(tmp_path / f"{i}.pt", 1, vocabulary) for i in range(3)]
    done("average", *paths, "-o", tmp_path / "o.pt")
    assert large == ["0.pt"]
