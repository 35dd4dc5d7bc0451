"""Notes, warnings and errors."""

import torch
from checkpoints import save
from command_line import done
from terminal import on_a_terminal

from swavg.console import messages


def test_names_with_terminal_codes_are_shown_harmless(tmp_path):
    evil = "x\x1b[31m[bold]y"
    save(tmp_path / "a.safetensors", {evil: torch.ones(2), "z": torch.ones(1)})
    save(tmp_path / "b.safetensors", {evil: torch.ones(3), "z": torch.ones(1)})
    shown, code = on_a_terminal(["average", tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert code == 3
    assert "\x1b[31m[bold]" not in shown
    assert r"\x1b[31m[bold]y" in shown


def test_what_all_inputs_say_is_said_once(tmp_path):
    for i in range(3):
        inner = {"w": torch.full((2,), float(i))}
        torch.save({"state_dict": inner, "state_dict_ema": inner}, tmp_path / f"{i}.pt")
    finished = done("average", "0.pt", "1.pt", "2.pt", "-o", "c.safetensors", cwd=tmp_path)
    assert finished.stderr.count("there is also 'state_dict_ema'") == 1


def test_a_terminal_gets_an_error_broken_between_words_and_paths_whole(tmp_path):
    (tmp_path / ("deep" * 20)).mkdir()
    for name, shape in (("a", 2), ("b", 3)):
        path = tmp_path / ("deep" * 20) / f"{name}.safetensors"
        save(path, {f"layer.{i}.weight": torch.ones(shape) for i in range(5)})
    paths = [path.parent / f"{name}.safetensors" for name in "ab"]
    shown, _ = on_a_terminal(["average", *paths], columns=40)
    message = shown[shown.index("error") :].replace("\r", "")
    assert "Use --lenient" in message
    words = {word for line in message.splitlines() for word in line.split()}
    assert {"'layer.0.weight'", "tensors", "differ."} <= words
    assert all(len(line) <= 40 or len(line.split()) == 1 for line in message.splitlines()[1:])
    shown, _ = on_a_terminal(["inspect", paths[0].with_name("none.pt")], columns=40)
    assert f"{paths[0].with_name('none.pt')}:" in shown


def test_within_rounds_nothing_is_said_twice(capsys):
    with messages.no_repetition():
        messages.notes(["a", "b", "a"])
        messages.warnings(["c"])
        messages.warnings(["c", "d"])
    messages.notes(["a"])
    assert capsys.readouterr().err.splitlines() == [
        "note a", "note b", "warning c", "warning d", "note a"
    ]  # fmt: skip
