"""A format of a third party: a magic number, a header of JSON, and the tensors' bytes."""

import json
from array import array
from dataclasses import dataclass
from math import prod

from swavg.dtypes import BY_NAME
from swavg.errors import InputError, OutputError
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.layout import FileLayout, Format, Layout
from swavg.formats.tensors import TableBuilder
from swavg.storage.paths import read_file
from swavg.storage.sources import LocalFile

MAGIC = b"TOY1"


def open_toy(path, key=None, shared=None):
    file, builder = LocalFile.find(path), TableBuilder()
    position = begin = 8 + int.from_bytes(read_file(path, 8)[4:], "little")
    try:
        header = json.loads(read_file(path, begin)[8:begin])
        for name, (dtype, shape) in header["tensors"].items():
            builder.add(name, (BY_NAME[dtype], tuple(map(abs, shape)), None), position)
            position += BY_NAME[dtype].nbytes(prod(map(abs, shape)))
        if position != file.size:
            raise ValueError(f"{file.size} bytes, not {position}")
        extras = Extras(recipe=json.dumps(header["recipe"]), template=header["note"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(path, f"is no toy file: {error}") from None
    return Checkpoint(path, "toy", (file,), builder.build(shared), extras=extras)


@dataclass(frozen=True, eq=False)
class ToyLayout(FileLayout):
    header: bytes = b""

    def fixed(self):
        yield 0, self.header

    def verify(self, path):
        head = read_file(path, len(self.header))
        if (head, LocalFile.find(path).size) != (self.header, self.size):
            raise OutputError(path, "is another file than was planned")


def lay_out(request):
    specs, template, offsets = request.specs, request.template, array("q")
    tensors = {name: (specs.at(n)[1].name, specs.at(n)[2]) for n, name in enumerate(specs.names)}
    note = template.extras.template if template.format == "toy" else None
    text = json.dumps({"recipe": request.recipe, "note": note, "tensors": tensors}).encode()
    header = MAGIC + len(text).to_bytes(4, "little") + text
    position = len(header)
    for size in specs.sizes:
        offsets.append(position)
        position += size
    numbers = array("I", range(len(specs)))
    return Layout((ToyLayout("", position, specs, numbers, offsets, header=header),))


FORMAT = Format("toy", (".toy",), lambda head: head.startswith(MAGIC), open_toy, lay_out)
