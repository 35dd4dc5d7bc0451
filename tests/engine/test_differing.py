"""Integers that differ: an error names all of them, and their mean is not taken in silence."""

import pytest
import torch
from checkpoints import load, save

import swavg
from swavg.planning.policy import Policy


def two(folder, *, differ):
    """Files whose integers of these names differ, behind one that does not and a counter."""
    ids = torch.arange(4)
    first, second = (
        {**dict.fromkeys("abcdefgh", ids), "same": ids, "n": torch.tensor(i)}
        | {"x": torch.full((2,), 1.0 + i)}
        for i in (1, 2)
    )
    second |= {name: ids.flip(0) for name in differ}
    return [save(folder / f"{i}.st", each) for i, each in enumerate((first, second))]


@pytest.mark.parametrize(
    ("integers", "differ", "said"),
    [
        ("auto", "bd", "'b' (int64 [4]) differs between the inputs, and is no counter. So do 'd'."),
        ("auto", "b", "'b' (int64 [4]) differs between the inputs, and is no counter."),
        ("error", "b", "'b' (int64) differs between the inputs. So do 'n'."),
        ("auto", "abcdefgh", "'a' (int64 [4]) differs between the inputs, and is no counter. So do"
                             " 'b', 'c', 'd', 'e', 'f', 'g' and 1 more."),
    ],
)  # fmt: skip
def test_the_error_names_all_that_differ(tmp_path, integers, differ, said):
    paths = two(tmp_path, differ=differ)
    with pytest.raises(swavg.MismatchError) as told:
        swavg.average(paths, output=tmp_path / "o.st", policy=Policy(integers=integers))
    assert told.value.message == said


def test_a_mean_of_integers_is_told(tmp_path):
    paths = two(tmp_path, differ="ce")
    report = swavg.average(paths, output=tmp_path / "o.st", policy=Policy(integers="mean"))
    assert load(tmp_path / "o.st")["c"].tolist() == [1, 1, 1, 1]
    (warning,) = report.warnings
    assert warning.endswith("indices, permutations or codes: 'c', 'e'")
    paths = two(tmp_path, differ="")
    report = swavg.average(paths, output=tmp_path / "p.st", policy=Policy(integers="mean"))
    assert load(tmp_path / "p.st")["n"].item() == 1
    assert report.warnings == ()


def test_the_mean_of_integers_of_parts_is_told_of_each(tmp_path):
    for i in (0, 1):
        for rank in (0, 1):
            state = {"x": torch.ones(2), "ids": torch.tensor([i, rank])}
            (tmp_path / f"m{i}").mkdir(exist_ok=True)
            torch.save(state, tmp_path / f"m{i}" / f"consolidated.0{rank}.pth")
    report = swavg.average(
        [tmp_path / "m0", tmp_path / "m1"], output=tmp_path / "o", policy=Policy(integers="mean")
    )
    assert [text for text in report.warnings if text.endswith("codes: 'ids'")]
