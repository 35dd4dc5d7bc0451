"""Files that are no checkpoints swavg reads: what they are, told by their bytes or else their name,
and a way out.

A hint that ends in commands has them on lines of their own, for this very file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from swavg.errors import InputError, NoWeightsError
from swavg.formats.commands import UNZIP, python, with_paths
from swavg.formats.packed import unpacking
from swavg.storage.paths import read_file

_LOOK = 1 << 16
_PICKLE = rb"(\x80[\x02-\x05]|\([dl]p\d+\n|[}\]]q\x00|c[A-Za-z_.]+\n\w+\n)"
_TRUST = "Unpickling runs whatever code the file names; do it only if you trust who made it"


@dataclass(frozen=True, slots=True)
class _Kind:
    problem: str
    """Reads after the file's name."""
    hint: str | None = None
    """``FILE`` is the path, ``STEM`` the path without its last suffix, ``FOLDER`` its folder."""
    head: bytes = b""
    """What the first bytes match; empty: they do not tell."""
    name: str = ""
    """What the end of the name matches, where the bytes tell nothing."""
    aside: bool = False
    """Among the parts of a checkpoint it goes along as it is."""


_FROM_PICKLE = python(
    "import pickle, sys, torch;"
    " f = lambda v: {k: f(x) for k, x in v.items()} if isinstance(v, dict)"
    " else torch.as_tensor(v) if hasattr(v, 'dtype') else v; torch.save(f(pickle.load("
    "open(sys.argv[1], 'rb'), encoding='latin1')), sys.argv[2])",
    ".pt",
)
_FROM_NUMPY = "import sys, numpy; from safetensors.numpy import save_file; save_file("
_KINDS = (
    _Kind("is a Git LFS pointer, not the file itself", "Fetch the file with: git lfs pull.",
          rb"version https://git-lfs"),
    _Kind("is the text half of an OpenVINO model", None, rb"<\?xml[^>]*>\s*<net\b"),
    _Kind("is a web page, not a checkpoint", "Was it a download that failed?",
          rb"\s*<(?i:!doctype|html|\?xml)"),
    _Kind("is a NumPy array (.npy), which swavg does not read", "Convert each:\n" + python(
        _FROM_NUMPY + "{'array': numpy.load(sys.argv[1])}, sys.argv[2])", ".safetensors"),
        rb"\x93NUMPY", r"\.npy"),
    _Kind("is a zip of files, not a checkpoint", UNZIP, rb"PK(\x03\x04|\x05\x06)", r"\.zip",
          aside=True),
    _Kind("is a pickle of scikit-learn objects, which swavg does not read", None,
          _PICKLE + b".*sklearn", r"\.joblib", aside=True),
    _Kind("is a bare pickle of PyTorch tensors, not a file of torch.save",
          f"Save it with torch. {_TRUST}:\n{_FROM_PICKLE}",
          _PICKLE + b".*_rebuild_(tensor|parameter)"),
    _Kind("is a pickle of NumPy arrays, not a PyTorch file",
          f"Save it with torch. {_TRUST}:\n{_FROM_PICKLE}", _PICKLE + b".*numpy",
          r"\.pdparams", aside=True),
    _Kind("is a pickle, but not one that torch.save wrote",
          f"Save it with torch. {_TRUST}:\n{_FROM_PICKLE}",
          _PICKLE, r"\.(pkl|pickle)", aside=True),
    _Kind("is the index of Keras weights in several shards, which swavg does not read",
          "Save the weights again without max_shard_size.", b"", r"\.weights\.json"),
    _Kind("is a GGUF file, which swavg does not read", "Average before converting to GGUF.",
          rb"GGUF|lmgg|fmgg|tjgg", r"\.gguf"),
    _Kind("is an ONNX model, which swavg does not read", "Average before exporting to ONNX.",
          rb"\x08[\x03-\x20]\x12.(pytorch|tf2onnx|onnx|skl2onnx|keras2onnx)", r"\.onnx"),
    _Kind("is a TensorFlow Lite model, which swavg does not read",
          "Average before converting to it.", rb".{4}TFL3", r"\.tflite"),
    _Kind("is of a TensorFlow SavedModel, which swavg does not read", None, b"",
          r"(^|/)saved_model\.pb(txt)?"),
    _Kind("names the latest checkpoint of TensorFlow in its folder",
          "Give FOLDER or, of all in it, FOLDER/*.index", rb"model_checkpoint_path:"),
    _Kind("is of a TensorFlow checkpoint, but not its index",
          "Give STEM.index or, of all beside it, FOLDER/*.index", b"",
          r"\.data-\d{5}-of-\d{5}|ckpt(-\d+)?\.meta"),
    _Kind("is of a TensorFlow checkpoint, but no whole index", "Was the copy cut short?", b"",
          r"ckpt(-\d+)?\.index"),
    _Kind("is a part of an Orbax checkpoint (JAX)", "Give its folder.", b"",
          r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt"),
    _Kind("is a Core ML model, which swavg does not read", "Average before converting to it.",
          b"", r"\.mlmodel"),
    _Kind("is a Parquet file, not a checkpoint", None, rb"PAR1"),
    _Kind("is an SQLite database, not a checkpoint", None, rb"SQLite format 3\0"),
    _Kind("is a 7z archive", "Unpack it, and give what is in it.", rb"7z\xbc\xaf\x27\x1c"),
    _Kind("is the index of Flax's shards, which swavg does not read as one checkpoint",
          "Average each shard with its namesakes.", b"", r"\.msgpack\.index\.json"),
    _Kind("is only the index of a checkpoint", "Give its folder.", b"", r"\.index\.json"),
    _Kind("starts with zeros: no checkpoint", "Was the copy or download cut short?", rb"\0{9}\0*$"),
)  # fmt: skip
_NAMES = re.compile(
    f"({'|'.join(f'(?:{kind.name})' for kind in _KINDS if kind.name)})$", re.IGNORECASE
)


def explain(path: str, head: bytes) -> InputError | None:
    """What the file at ``path``, which begins with ``head``, is; None if that cannot be told."""
    if (packed := unpacking(path, head)) is not None:
        return packed
    if re.match(_PICKLE, head):
        head = read_file(path, _LOOK)
    for kind in _KINDS:
        if kind.head and re.match(kind.head, head, re.DOTALL):
            return _error(path, kind)
    return explain_name(path)


def explain_name(path: str) -> InputError | None:
    """What a file of that name is, if it is none that swavg reads."""
    if _NAMES.search(path) is None:
        # There may be a hundred thousand of them.
        return None
    for kind in _KINDS:
        if kind.name and re.search(f"({kind.name})$", path, re.IGNORECASE):
            return _error(path, kind)
    return None


def _error(path: str, kind: _Kind) -> InputError:
    hint = None if kind.hint is None else with_paths(kind.hint, path)
    error = NoWeightsError if kind.aside else InputError
    return error(path, kind.problem, hint=hint)


def first_line(head: bytes) -> str:
    """The beginning of a text; empty if these bytes are none."""
    text = head.decode(errors="replace")
    if any(not (each.isprintable() or each in "\t\r\n") or each == "\ufffd" for each in text[:400]):
        return ""
    return text.strip().split("\n")[0][:60]
