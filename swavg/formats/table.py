"""All formats, by name."""

from __future__ import annotations

from swavg.formats.files import FILES
from swavg.formats.layout import Format
from swavg.formats.places import PLACES

FORMATS: dict[str, Format] = {**FILES, **PLACES}
