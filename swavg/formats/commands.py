"""Commands that make of a file one that swavg reads: a ``FILE`` in their text is its path, ``STEM``
the path without its last suffix, ``FOLDER`` its folder."""

from __future__ import annotations

import os
import re
import shlex

from swavg.storage.stores import is_url


def python(code: str, output: str) -> str:
    """A command that runs Python on the file; what it makes ends with ``output``."""
    return f'python -c "{code}" FILE STEM{output}'


FROM_VOID = python(
    "import sys, ml_dtypes, numpy; numpy.savez(sys.argv[2], **{name: array.view("
    "ml_dtypes.bfloat16).astype('f4') if array.dtype == 'V2' else array"
    " for name, array in numpy.load(sys.argv[1]).items()})",
    ".f4.npz",
)
LOAD_AND_SAVE = python(
    "import sys, torch; torch.save(torch.load(sys.argv[1],map_location='cpu',weights_only=True),"
    " sys.argv[2])",
    ".saved.pt",
)
STATE_DICT = python(
    "import sys, torch; torch.save(torch.jit.load(sys.argv[1], 'cpu').state_dict(), sys.argv[2])",
    ".state.pt",
)
UNZIP = "Unpack it, and give what is in it:\nunzip FILE -d STEM"


def with_paths(text: str, path: str) -> str:
    """The ``text`` with the path of the file it is about, and what is made of it beside it. Of an
    object in a store the commands are for a copy."""
    if is_url(path) and "\n" in text:
        text, path = f"Copy it here first. {text}", os.path.basename(path)
    places = {"FILE": path, "FOLDER": os.path.dirname(path) or "."}
    return re.sub(
        r"\b(FILE|FOLDER|STEM(\S*))",
        lambda found: (
            output_for(path, found[2]) if found[2] is not None else shlex.quote(places[found[1]])
        ),
        text,
    )


def output_for(path: str, suffix: str = "") -> str:
    """A name for what is made of the file at ``path``: never its own. Quoted for a shell."""
    stem = re.sub(r"(?<=[^/])(\.tar)?\.[^./]+$", "", path)
    made = stem + suffix
    return shlex.quote(made if made != path else f"{stem}-unpacked{suffix}")
