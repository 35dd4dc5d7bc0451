"""All formats, by name."""

from __future__ import annotations

from swavg.formats import folder
from swavg.formats.files import FILES
from swavg.formats.layout import Format

FORMATS: dict[str, Format] = {**FILES, "folder": folder.FORMAT}
