"""What --json prints, held against the schema that ships with the package."""

import functools
import json
from importlib.resources import files


@functools.cache
def schema():
    return json.loads(files("swavg").joinpath("schema.json").read_text(encoding="utf-8"))


@functools.cache
def _validator(name):
    from jsonschema import Draft202012Validator

    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema()["$defs"]})


def documents(text):
    """All objects and lists in ``text``, one after the other, each of them valid."""
    found, at = [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = json.JSONDecoder().raw_decode(text, at)
        for entry in value if isinstance(value, list) else [value]:
            _validator(entry["schema"].removeprefix("swavg.").partition("/")[0]).validate(entry)
        assert not isinstance(value, list) or len(value) > 1
        found.append(value)
    return found


def document(text):
    """The one object, or list, in ``text``."""
    (found,) = documents(text)
    return found
