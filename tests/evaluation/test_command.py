"""The score that a command prints."""

import math

import pytest

from swavg.errors import RequestError
from swavg.evaluation.command import Command


@pytest.mark.parametrize(
    ("printed", "score"),
    [
        ("0.25", 0.25),
        ("loading\\n12 batches\\n-3e-2\\n\\n", -0.03),
        ("  7  ", 7.0),
        ("inf", math.inf),
    ],
)
def test_the_score_is_the_last_line(printed, score):
    assert Command(f"printf '%b' '{printed}'; : {{}}")("a.pt") == score


def test_nan_is_a_score():
    assert math.isnan(Command("echo nan {} | cut -d' ' -f1")("a.pt"))


@pytest.mark.parametrize(
    "printed", ["loss: 0.3", "0.3 a.pt", "93%", "0,3", "1_000", "", "0.3\\ndone"]
)
def test_a_last_line_that_is_more_than_a_number_is_none(printed):
    with pytest.raises(RequestError, match="printed no score") as caught:
        Command(f"printf '%b' '{printed}'; : {{}}")("a.pt")
    assert printed.replace("\\n", "\n  ") in caught.value.message
    assert "json_key=" in caught.value.hint


@pytest.mark.parametrize(
    ("printed", "key", "score"),
    [
        ('{"loss": 0.5}', "loss", 0.5),
        ('{"eval": {"loss": 2}}', "eval.loss", 2.0),
        ('{"results": {"mnli.m": {"acc,none": 0.9}}}', "results.mnli.m.acc,none", 0.9),
        ('{"a.b": 1, "a": {"b": 2}}', "a.b", 1.0),
        ('{"a": {"c": 1}, "a.b": {"c": 3}}', "a.b.c", 3.0),
        ('{\n  "loss": 0.5\n}\n', "loss", 0.5),
        ('epoch 1\n{"loss": 0.5}\n', "loss", 0.5),
    ],
)
def test_the_score_is_a_number_in_json(tmp_path, printed, key, score):
    (tmp_path / "out.json").write_text(printed)
    assert Command("cat {}", key)(str(tmp_path / "out.json")) == score


@pytest.mark.parametrize(
    "printed",
    ['{"other": 1}', '{"loss": "0.5"}', '{"loss": true}', '{"loss": null}', "[1]", "0.5", "", "{"],
)
def test_json_without_the_number_has_no_score(tmp_path, printed):
    (tmp_path / "out.json").write_text(printed)
    with pytest.raises(RequestError, match="printed no score") as caught:
        Command("cat {}", "loss")(str(tmp_path / "out.json"))
    assert "'loss'" in caught.value.hint


def test_nan_in_json_is_a_score(tmp_path):
    (tmp_path / "out.json").write_text('{"loss": NaN}')
    assert math.isnan(Command("cat {}", "loss")(str(tmp_path / "out.json")))


@pytest.mark.parametrize("name", ["a b.txt", "it's.txt", "$(exit 3).txt", "ü.txt", "a;b.txt"])
def test_the_path_is_one_word_of_the_shell_wherever_it_stands(tmp_path, name):
    (tmp_path / name).write_text("4")
    path = str(tmp_path / name)
    assert Command("test -f {} && cat {}")(path) == 4


def test_a_text_without_a_place_for_the_path_is_refused():
    with pytest.raises(RequestError, match="does not say where") as caught:
        Command("python eval.py")
    assert caught.value.hint == "Put {} there: 'python eval.py {}'."


def test_a_command_that_fails_is_told_with_its_exit_code_and_last_lines():
    with pytest.raises(RequestError) as caught:
        Command("seq 9; echo {}; exit 3")("a b.pt")
    assert caught.value.message == (
        "'seq 9; echo 'a b.pt'; exit 3' ended with exit code 3. It printed:"
        "\n  6\n  7\n  8\n  9\n  a b.pt"
    )
    with pytest.raises(RequestError, match=r"killed by signal 9\. It printed nothing"):
        Command("kill -9 $$; echo {}")("a.pt")


def test_a_command_has_no_input_and_its_errors_are_passed_on(capfd):
    assert Command("cat; echo {} >&2; echo 1")("a.pt") == 1
    assert capfd.readouterr().err == "a.pt\n"
