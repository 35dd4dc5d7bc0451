"""What ``swavg diff`` prints, and its exit codes."""

import json

import pytest
import torch
from checkpoints import save, state
from command_line import swavg
from test_memory import MIB, PROMISE, peak, sparse


def both(folder, a, b):
    """A safetensors file of each; their paths."""
    return save(folder / "a.safetensors", a), save(folder / "b.safetensors", b)


ONES, TWOS = torch.ones(2), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    ("change", "flags", "code", "verdict"),
    [
        ({}, [], 0, "the same"),
        ({}, ["--values"], 0, "the same"),
        ({"head.weight": torch.zeros(3, 7)}, [], 0, "the same"),
        ({"head.weight": torch.zeros(3, 7)}, ["--values"], 3, "different"),
        ({"head.weight": torch.zeros(2, 7)}, [], 3, "different"),
        ({"head.weight": torch.zeros(3, 7).half()}, [], 3, "different"),
        ({"more": torch.zeros(1)}, [], 3, "different"),
    ],
)
def test_the_exit_code_says_whether_anything_differs(tmp_path, change, flags, code, verdict):
    both(tmp_path, state(1), state(1) | change)
    done = swavg("diff", "a.safetensors", "b.safetensors", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines()[-1] == verdict
    as_json = swavg("diff", "a.safetensors", "b.safetensors", "--json", *flags, cwd=tmp_path)
    assert as_json.returncode == code
    assert json.loads(as_json.stdout)["same"] == (code == 0)


def test_the_report_names_what_differs(tmp_path):
    a = {"one.w": ONES, "both.w": ONES, "shape.w": ONES, "moved.w": ONES}
    b = {"two.w": ONES, "both.w": ONES, "shape.w": torch.ones(3), "moved.w": 1.5 * ONES}
    done = swavg("diff", *both(tmp_path, a, b), "--values")
    assert done.returncode == 3
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["only", "in", "A", "(1)"] in rows
    assert rows[rows.index(["only", "in", "B", "(1)"]) + 1] == ["two.w"]
    assert ["shape.w", "float32", "[2]", "float32", "[3]"] in rows
    assert ["moved.w", "0.5", "0.5", "1.000000", "100.00%"] in rows
    assert ["all", "floats", "0.3536", "0.5", "0.980581", "50.00%"] in rows
    assert "2 alike, 1 only in A, 1 only in B, 1 of other dtype or shape" in done.stdout


def test_long_lists_are_cut_unless_all_is_asked_for(tmp_path):
    many = {f"t{i:02}": torch.tensor([i + 1.0]) for i in range(30)}
    paths = both(tmp_path, many, {name: -each for name, each in many.items()})
    assert "and 10 more; --all" in swavg("diff", *paths, "--values").stdout
    shown = swavg("diff", *paths, "--values", "--all").stdout
    assert all(name in shown for name in many)


def test_names_can_neither_move_the_cursor_nor_pass_for_rows_or_markup(tmp_path):
    name = "a\x1b[2J[red]\n:smile:"
    paths = both(tmp_path, {name: ONES, "\x9bx": ONES}, {name: TWOS})
    done = swavg("diff", *paths, "--values")
    assert not {"\x1b", "\x9b"} & set(done.stdout)
    assert r"a\x1b[2J[red]\n:smile:" in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["a.safetensors"], 2, "Missing argument 'B'"),
        (["a.safetensors", "missing"], 4, "missing: no such file"),
    ],
)
def test_wrong_calls_say_what_is_wrong(tmp_path, args, code, said):
    both(tmp_path, state(1), state(2))
    done = swavg("diff", *args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


@pytest.mark.slow
def test_equal_files_larger_than_the_promise_are_compared_within_it(tmp_path):
    paths = [sparse(tmp_path / f"{name}.safetensors", [64 * MIB]) for name in "ab"]
    assert peak("diff", *paths, "--values") <= PROMISE


def test_a_prefix_is_named_and_taken_off(tmp_path):
    names = ["a.weight", "b.weight", "c.bias"]
    one, other = {name: torch.ones(2) for name in names}, {f"model.{n}": ONES for n in names}
    paths = save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", other)
    found = swavg("diff", *paths)
    assert found.returncode == 3
    assert "all 3 names of a.safetensors are in b.safetensors under 'model.'" in found.stderr
    assert "Use --strip-prefix model. to" in found.stderr
    assert "3 tensors of the same name" in swavg("diff", *paths, "--strip-prefix", "model.").output
