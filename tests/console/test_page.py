"""Lines, facts and tables."""

import io
import re

import pytest

from swavg.console.page import Column, Page, Row
from swavg.console.text import bar, block, counted, mix, number, size


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, columns, rows, width=None, **options):
    stream = io.StringIO()
    if width is not None:
        stream = Terminal()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
    Page(stream).table(columns, rows, **options)
    return re.sub(r"\x1b\[\d+m", "", stream.getvalue()).splitlines()


TABLE = [Column("name", folds=True), Column("size", right=True, drop=1), Column("n", right=True)]
ROWS = [Row(["body.weight", "10 B", "3"]), Row(["b", "2 kB", "12"])]


def test_a_table_is_as_wide_as_its_cells(monkeypatch):
    assert shown(monkeypatch, TABLE, ROWS) == [
        "name         size   n",
        "─────────────────────",
        "body.weight  10 B   3",
        "b            2 kB  12",
    ]


def test_columns_go_and_fold_where_a_terminal_is_narrow(monkeypatch):
    long = [Row(["layers.first.attention.query.weight", "10 B", "3"])]
    assert shown(monkeypatch, TABLE, long, width=30) == [
        "name                         n",
        "──────────────────────────────",
        "layers.first.attention.      3",
        "  query.weight",
    ]


def test_cells_may_have_several_lines_and_styles(monkeypatch):
    rows = [Row(["a\nb", ("1 B", "red"), "3"])]
    lines = shown(monkeypatch, TABLE, rows)[2:]
    assert [line.split() for line in lines] == [["a", "1", "B", "3"], ["b"]]


def test_a_frame_is_white_space_and_knows_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(monkeypatch, [Column("because", folds=True)], [Row(["word " * 30])], framed=True)
    assert {lines[0].strip(), lines[-1].strip()} == {""}
    assert max(map(len, lines)) <= 80
    assert "".join(lines).count("word") == 30


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "  three"]),
        ("one two three", 13, ["one two three"]),
        ("one /a/path/that/is/long two", 8, ["one", "  /a/path/that/is/long", "  two"]),
        ("/a/path/that/is/long two", 8, ["/a/path/that/is/long", "  two"]),
        ("    one two", 8, ["    one", "  two"]),
        ("one\ntwo three", 6, ["one", "  two", "  three"]),
        ("one two three", None, ["one two three"]),
        ("do: swavg bn a.pt", 8, ["do:", "  swavg bn a.pt"]),
    ],
)
def test_a_line_is_broken_between_words(monkeypatch, text, width, lines):
    stream = io.StringIO() if width is None else Terminal()
    monkeypatch.setenv("COLUMNS", str(width or 8))
    monkeypatch.setenv("TERM", "xterm")
    Page(stream).line(text, wrap=True, hang=2)
    assert stream.getvalue().splitlines() == lines


def test_a_broken_line_keeps_its_styles(monkeypatch):
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "8")
    monkeypatch.setenv("TERM", "xterm")
    Page(stream).line(("one two", "green"), " three", wrap=True)
    assert stream.getvalue() == "\x1b[32mone two\x1b[0m\nthree\n"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (size(999), "999 B"),
        (size(90_900_000), "90.9 MB"),
        (size(999_600), "1 MB"),
        (number(22_700_000), "22.7 M"),
        (number(12), "12"),
        (counted(1, "tensor"), "1 tensor"),
        (counted(2000, "batch", "batches"), "2,000 batches"),
        (mix({"int64": 2, "float32": 98}), ("float32 98%", "int64 2%")),
        (mix({"float32": 999, "int64": 1}, short=True), ("f32",)),
        (bar(0.5, 4), "██"),
        (block(12, 0) + block(12, 1) + block(12, 2), "█▄ "),
    ],
)
def test_numbers_are_short(made, text):
    assert made == text
