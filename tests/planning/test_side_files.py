"""Files beside the weights that differ between inputs: which are told, and how."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import swavg
from swavg.formats import open_checkpoint
from swavg.formats.configuration import is_configuration
from swavg.planning import side_files
from swavg.planning.side_files import differing_files


def folder(path: Path, **files: str | bytes) -> Path:
    """A checkpoint beside files, named with ``__`` for the dot."""
    path.mkdir()
    weights = {"w": np.full(2, len(os.listdir(path.parent)), np.float32)}
    safetensors.numpy.save_file(weights, path / "model.safetensors")
    for name, text in files.items():
        content = text if isinstance(text, bytes) else text.encode()
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def told(path: Path, name: str, *texts: str | bytes | None) -> str:
    """What is told of folders that hold a file with these texts (None: they lack it)."""
    files = [{} if text is None else {name.replace(".", "__"): text} for text in texts]
    folders = [folder(path / f"m{number}", **each) for number, each in enumerate(files)]
    beside = [open_checkpoint(each).extras.side_files for each in folders]
    warnings = differing_files(beside, names(folders))
    assert len(warnings) < 2
    begin, end = "files beside the weights differ: ", ". An average gets those of its last input"
    return warnings[0].removeprefix(begin).partition(end)[0] if warnings else ""


def names(folders: list[Path]) -> list[str]:
    return [each.name for each in folders]


@pytest.mark.parametrize(
    ("name", "one", "other", "expected"),
    [
        ("config.json", '{"act": "silu"}', '{"act": "gelu"}', 'act: "silu" in m0, "gelu" in m1'),
        (
            "config.json",
            '{"text_config": {"rope": [{"base": 1}], "n": 2}}',
            '{"text_config": {"rope": [{"base": 5}], "n": 3}}',
            "text_config.rope[0].base: 1 in m0, 5 in m1, and 1 more",
        ),
        (
            "generation_config.json",
            '{"eos_token_id": [1]}',
            "{}",
            "eos_token_id: [1] in m0, nothing in m1",
        ),
        (
            "adapter_config.json",
            '{"r": 4, "bias": "a"}',
            '{"r": 8, "bias": "b"}',
            'bias: "a" in m0, "b" in m1',
        ),
        (
            "preprocessor_config.json",
            '{"size": 224}',
            '{"size": 336}',
            "size: 224 in m0, 336 in m1",
        ),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"a": 0}}}',
            '{"model": {"vocab": {"a": 0, "b": 1}}}',
            "model.vocab.b: nothing in m0, 1 in m1",
        ),
        (
            "config.json",
            '{"a": "%s"}' % ("x" * 99),
            '{"a": 1}',
            f'a: "{"x" * 35}... in m0, 1 in m1',
        ),
        # Not JSON, or none that can be read.
        ("merges.txt", "a b", "a c", "m0 and m1"),
        ("chat_template.jinja", "{{ a }}", "{{ a}}", "m0 and m1"),
        ("tokenizer.model", b"\n\x01", b"\n\x02", "m0 and m1"),
        ("config.yaml", "a: 1", "a: 2", "m0 and m1"),
        ("modeling_x.py", "a", "b", "m0 and m1"),
        ("config.json", "{", "{}", "m0 and m1"),
        ("config.json", "[" * 100_000, "{}", "m0 and m1"),
        ("config.json", '{"\\ud800": "\\ud800"}', "{}", '\ud800: "\ud800" in m0, nothing in m1'),
    ],
)
def test_the_first_difference_is_told(
    tmp_path: Path, name: str, one: str, other: str, expected: str
) -> None:
    assert told(tmp_path, name, one, other) == f"{name} ({expected})"


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("config.json", '{"a": 1, "b": null}', '{\n "a": 1}'),
        ("config.json", '{"_name_or_path": "x"}', '{"_name_or_path": "y"}'),
        ("config.json", '{"a": {"transformers_version": "4"}}', '{"a": {}}'),
        ("config.json", '{"dtype": "float32"}', '{"torch_dtype": "float16"}'),
        ("config.json", '{"a": NaN}', '{"a": NaN }'),
        # A set, written in any order; and what is refused or merged with the tensors.
        ("adapter_config.json", '{"target_modules": ["q", "v"]}', '{"target_modules": ["v", "q"]}'),
        ("adapter_config.json", '{"r": 4, "lora_alpha": 8}', '{"r": 8, "lora_alpha": 8}'),
        ("trainer_state.json", '{"global_step": 1}', '{"global_step": 2}'),
        ("all_results.json", "1", "2"),
        ("README.md", "1", "2"),
        ("train.log", "1", "2"),
        ("requirements.txt", "1", "2"),
        ("training_args.bin", "1", "2"),
        ("latest", "1", "2"),
        ("config.json", '{"a": 1}', None),
        ("config.json", None, '{"a": 1}'),
    ],
)
def test_what_means_nothing_is_not_told(
    tmp_path: Path, name: str, one: str | None, other: str | None
) -> None:
    assert told(tmp_path, name, one, other) == ""


def test_each_input_is_compared_with_the_last(tmp_path: Path) -> None:
    same, other = '{"a": 1}', '{"a": 2}'
    assert told(tmp_path, "config.json", same, other, same) == "config.json (a: 2 in m1, 1 in m2)"


def test_of_large_files_it_is_only_told_that_they_differ(tmp_path: Path) -> None:
    # Longer than what is compared at once; the last byte differs.
    texts = [json.dumps({"a": "x" * (3 << 20) + end}) for end in "yz"]
    assert told(tmp_path, "tokenizer.json", *texts) == "tokenizer.json (m0 and m1)"


@pytest.mark.parametrize("depth", [200, 600, 900, 990])
def test_any_depth_of_nesting_is_told(tmp_path: Path, depth: int) -> None:
    one, other = ('{"a":' * depth + end + "}" * depth for end in "12")
    assert told(tmp_path, "config.json", one, other).startswith("config.json (")


def test_a_file_that_is_gone_is_left_to_who_copies_it(tmp_path: Path) -> None:
    folders = [folder(tmp_path / name, config__json=f'"{name}"') for name in ("m0", "m1")]
    beside = [open_checkpoint(each).extras.side_files for each in folders]
    assert len(differing_files(beside, names(folders))) == 1
    (folders[0] / "config.json").unlink()
    assert differing_files(beside, names(folders)) == []


def test_links_to_one_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"x" * 99)
    folders = [folder(tmp_path / name) for name in ("m0", "m1")]
    for each in folders:
        os.symlink(blob, each / "tokenizer.json")
    beside = [open_checkpoint(each).extras.side_files for each in folders]
    monkeypatch.setattr(side_files.Pool, "read", None)
    assert differing_files(beside, names(folders)) == []


def test_many_files_are_one_warning_of_the_average(tmp_path: Path) -> None:
    folders = [
        folder(tmp_path / f"m{n}", **{f"{c}__json": f'{{"x": {n}}}' for c in "abcdefgh"})
        for n in range(2)
    ]
    report = swavg.average(folders, output=tmp_path / "o.safetensors")
    (warning,) = report.warnings
    assert "a.json (x: 0 in m0, 1 in m1); b.json (" in warning
    assert "f.json (x: 0 in m0, 1 in m1); and 2 more. An average gets" in warning


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model_index.json", True),
        ("special_tokens_map.json", True),
        ("vocab.txt", True),
        ("dict.en.txt", True),
        ("sentencepiece.bpe.model", True),
        ("bpe.codes.txt", True),
        ("Config.JSON", True),
        ("eval_results.json", False),
        ("log.json", False),
        ("catalog.json", True),
        ("zero_to_fp32.py", False),
        (".gitattributes", False),
        ("LICENSE.txt", False),
    ],
)
def test_files_are_known_by_their_names(name: str, expected: bool) -> None:
    assert is_configuration(name) == expected


def test_a_file_that_some_folders_lack_is_told(tmp_path: Path) -> None:
    folders = [folder(tmp_path / "m0", tokenizer__json="{}"), folder(tmp_path / "m1")]
    (folders[1] / "config.json").write_text("{}")
    beside = [open_checkpoint(each).extras.side_files for each in folders]
    (told,) = differing_files(beside, names(folders))
    assert "tokenizer.json (not in m1)" in told
    assert "config.json (not in m0)" in told
