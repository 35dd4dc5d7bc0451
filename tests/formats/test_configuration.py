"""Configuration beside weights: the dtypes that it states are those of what is written."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import swavg
from swavg.planning.policy import Policy


def folder(path: Path, dtypes: list[object], **files: str) -> Path:
    """A checkpoint of a tensor per dtype, each larger than all before it, beside these files."""
    path.mkdir()
    arrays = {f"w{i}": np.ones(3**i, dtype) for i, dtype in enumerate(dtypes)}
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    for name, text in files.items():
        (path / name.replace("__", ".")).write_bytes(text.encode())
    return path


def averaged(path: Path, config: str, dtype: str = "keep", *, of: object = "bfloat16") -> str:
    """The config.json of the average of two of that dtype."""
    inputs = [folder(path / name, [np.dtype(of)], config__json=config) for name in "ab"]
    swavg.average(inputs, output=path / "o", policy=Policy(dtype=dtype))
    return (path / "o" / "config.json").read_bytes().decode()


@pytest.mark.parametrize(
    ("config", "dtype", "written"),
    [
        ('{"torch_dtype": "bfloat16"}', "float32", '{"torch_dtype": "float32"}'),
        ('{"torch_dtype": "bfloat16"}', "float16", '{"torch_dtype": "float16"}'),
        # What transformers writes since 4.56, with what it wrote before.
        (
            '{"dtype":"bfloat16",\r\n\t"torch_dtype" : "torch.bfloat16"}',
            "float32",
            '{"dtype":"float32",\r\n\t"torch_dtype" : "torch.float32"}',
        ),
        # All that are nested, and nothing else: not indentation, order, escapes or numbers.
        (
            '{\n   "z": "\\u00e4ö", "a": 1e-05,\n "text_config": {"torch_dtype": "bfloat16"},'
            '"vision_config": {"encoder": [{"dtype": "bfloat16"}]}}\n',
            "float32",
            '{\n   "z": "\\u00e4ö", "a": 1e-05,\n "text_config": {"torch_dtype": "float32"},'
            '"vision_config": {"encoder": [{"dtype": "float32"}]}}\n',
        ),
        # The dtype of other weights: most of them became float32, so do these to a loader.
        ('{"dtype": "float16"}', "float32", '{"dtype": "float32"}'),
        # What a quantiser computes in, and other dtypes, are not those of the weights.
        (
            '{"quantization_config": {"x": {"dtype": "bfloat16"}, "bnb_4bit_compute_dtype":'
            ' "bfloat16"}, "mamba_ssm_dtype": "bfloat16", "dtype": "bfloat16"}',
            "float32",
            '{"quantization_config": {"x": {"dtype": "bfloat16"}, "bnb_4bit_compute_dtype":'
            ' "bfloat16"}, "mamba_ssm_dtype": "bfloat16", "dtype": "float32"}',
        ),
        ('{"note": "\\"dtype\\": \\"bfloat16\\""}', "float32", None),
        ('{"torch_dtype": "auto"}', "float32", None),
        ('{"torch_dtype": null, "dtype": 3}', "float32", None),
        ('{"torch_dtype": "bfloat16", broken', "float32", None),
        ('{"hidden_size": 8}', "float32", None),
        ('{"torch_dtype": "bfloat16"}', "bfloat16", None),
        # It said so of the inputs too, and swavg changes no dtype.
        ('{"torch_dtype": "float32"}', "keep", None),
    ],
)
def test_a_stated_dtype_is_the_one_written(
    tmp_path: Path, config: str, dtype: str, written: str | None
) -> None:
    assert averaged(tmp_path, config, dtype) == (config if written is None else written)


def test_a_change_is_told(tmp_path: Path) -> None:
    inputs = [folder(tmp_path / n, [np.float16], config__json='{"dtype": "float16"}') for n in "ab"]
    report = swavg.average(inputs, output=tmp_path / "o", policy=Policy(dtype="float32"))
    assert report.notes == ("config.json says what is written: dtype is float32 (was float16)",)


def test_each_part_gets_what_became_of_its_own_dtype(tmp_path: Path) -> None:
    """Floats are written as in the first input; the configuration is the last one's."""
    half, brain, single = np.float16, ml_dtypes.bfloat16, np.float32
    one = folder(tmp_path / "one", [single, half, brain])
    config = '{"a": {"dtype": "float32"}, "b": {"dtype": "float16"}, "c": {"dtype": "bfloat16"}}'
    two = folder(tmp_path / "two", [single, single, half], config__json=config)
    swavg.average([one, two], output=tmp_path / "o", policy=Policy(mixed_dtypes=True))
    found = json.loads((tmp_path / "o" / "config.json").read_text())
    # Of the float32 of 'two' most became float16, its float16 became bfloat16.
    assert [found[key]["dtype"] for key in "abc"] == ["float16", "bfloat16", "bfloat16"]


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("adapter_config.json", True),
        ("open_clip_config.json", True),
        ("preprocessor_config.json", False),
        ("tokens.json", False),
    ],
)
def test_which_files_state_dtypes(tmp_path: Path, name: str, states: bool) -> None:
    text = '{"dtype": "float32"}'
    inputs = [folder(tmp_path / n, [np.float32], **{name.replace(".", "__"): text}) for n in "ab"]
    swavg.average(inputs, output=tmp_path / "o", policy=Policy(dtype="bfloat16"))
    expected = text.replace("float32", "bfloat16") if states else text
    assert (tmp_path / "o" / name).read_text() == expected


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("config.yaml", "model:\n  torch_dtype: 'torch.bfloat16'\n", "torch_dtype bfloat16"),
        ("model_config.yml", "a: 1\ndtype: bfloat16 # as saved\n", "dtype bfloat16"),
        ("config.yaml", "mamba_ssm_dtype: bfloat16\n# dtype: bfloat16\n", None),
        ("config.yaml", "dtype: float32\n", None),
        ("trainer.yaml", "dtype: bfloat16\n", None),
    ],
)
def test_a_dtype_that_yaml_states_is_told_and_stays(
    tmp_path: Path, name: str, text: str, told: str | None
) -> None:
    files = {name.replace(".", "__"): text}
    inputs = [folder(tmp_path / each, [ml_dtypes.bfloat16], **files) for each in "ab"]
    report = swavg.average(inputs, output=tmp_path / "o", policy=Policy(dtype="float32"))
    notes = [note for note in report.notes if name in note]
    assert notes == ([] if told is None else [f"{name} says {told}, and float32 is written"])
    assert (tmp_path / "o" / name).read_text() == text
