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


SAME = "the same names, shapes, dtypes and values"
SAME_HEADERS = "the same names, shapes and dtypes; values were not read"
ONES, TWOS = torch.ones(2), torch.full((2,), 2.0)


@pytest.mark.parametrize(
    ("change", "flags", "code", "verdict"),
    [
        ({}, [], 0, SAME),
        ({}, ["--headers"], 0, SAME_HEADERS),
        ({"head.weight": torch.zeros(3, 7)}, [], 3, "different"),
        ({"head.weight": torch.zeros(3, 7)}, ["--values"], 3, "different"),
        ({"head.weight": torch.zeros(3, 7)}, ["--headers"], 0, SAME_HEADERS),
        ({"head.weight": torch.zeros(2, 7)}, ["--headers"], 3, "different"),
        ({"head.weight": torch.zeros(3, 7).half()}, ["--headers"], 3, "different"),
        ({"more": torch.zeros(1)}, ["--headers"], 3, "different"),
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
    same = {SAME: True, SAME_HEADERS: None, "different": False}[verdict]
    assert json.loads(as_json.stdout)["same"] is same


def test_equal_values_of_other_dtypes_are_not_the_same(tmp_path):
    done = swavg("diff", *both(tmp_path, {"w": ONES}, {"w": ONES.bfloat16()}))
    assert done.returncode == 3
    assert "1 tensor identical, 0 differ" in done.stdout
    assert done.stdout.splitlines()[-1] == "different"


def test_all_state_dicts_that_both_have_are_compared(tmp_path):
    contents = {
        "a": {"model": {"w": ONES}, "ema": {"w": ONES}},
        "b": {"model": {"w": ONES}, "ema": {"w": TWOS}},
        "c": {"model": {"w": ONES}},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
    done = swavg("diff", "a.pt", "b.pt", cwd=tmp_path)
    assert (done.returncode, "1 tensor identical, 1 differ" in done.stdout) == (3, True)
    assert (done.stderr, "ema.w" in done.stdout) == ("", True)
    assert swavg("diff", "a.pt", "b.pt", "--key", "model", cwd=tmp_path).returncode == 0
    done = swavg("diff", "a.pt", "c.pt", cwd=tmp_path)
    assert (done.returncode, "note not compared: ema" in done.stderr) == (0, True)


def test_what_is_not_compared_is_said(tmp_path):
    for name, step in (("a", 1), ("b", 2)):
        content = {"model": {"w": ONES}, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(content | {"step": step}, tmp_path / f"{name}.pt")
    done = swavg("diff", "a.pt", "b.pt", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, SAME)
    assert done.stderr == "note not compared: optimizer, step\n"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"w": torch.arange(6).reshape(2, 3).t()}, {"w": torch.arange(6).reshape(2, 3).t() + 1}),
        ({"w": torch.tensor(True)}, {"w": torch.tensor(False)}),
        ({"w": torch.tensor([1, 2**62])}, {"w": torch.tensor([1, 2**62 + 1])}),
        ({"w": torch.tensor([float("nan"), 1])}, {"w": torch.tensor([float("nan"), 2])}),
        ({"w": torch.tensor([1 + 2j])}, {"w": torch.tensor([1 + 3j])}),
    ],
)
def test_one_differing_element_of_any_kind_is_noticed(tmp_path, a, b):
    for name, content in (("a", a), ("b", b)):
        torch.save({"model": content}, tmp_path / f"{name}.pt")
    assert swavg("diff", "a.pt", "b.pt", cwd=tmp_path).returncode == 3
    assert swavg("diff", "a.pt", "a.pt", cwd=tmp_path).returncode == 0


def test_the_report_names_what_differs(tmp_path):
    a = {"one.w": ONES, "both.w": ONES, "shape.w": ONES, "moved.w": ONES}
    b = {"two.w": ONES, "both.w": ONES, "shape.w": torch.ones(3), "moved.w": 1.5 * ONES}
    done = swavg("diff", *both(tmp_path, a, b))
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
    assert "and 10 more; --all" in swavg("diff", *paths).stdout
    shown = swavg("diff", *paths, "--all").stdout
    assert all(name in shown for name in many)


def test_names_can_neither_move_the_cursor_nor_pass_for_rows_or_markup(tmp_path):
    name = "a\x1b[2J[red]\n:smile:"
    paths = both(tmp_path, {name: ONES, "\x9bx": ONES}, {name: TWOS})
    done = swavg("diff", *paths)
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
    assert peak("diff", *paths) <= PROMISE


def test_a_prefix_is_named_and_taken_off(tmp_path):
    names = ["a.weight", "b.weight", "c.bias"]
    one, other = {name: torch.ones(2) for name in names}, {f"model.{n}": ONES for n in names}
    paths = save(tmp_path / "a.safetensors", one), save(tmp_path / "b.safetensors", other)
    found = swavg("diff", *paths)
    assert found.returncode == 3
    assert "all 3 names of a.safetensors are in b.safetensors under 'model.'" in found.stderr
    assert "Use --strip-prefix model. to" in found.stderr
    assert "3 tensors of the same name" in swavg("diff", *paths, "--strip-prefix", "model.").output
