"""How an average was made, in the comment of a zip whose members are all its own library's."""

from __future__ import annotations

from swavg.formats.blocks import Read
from swavg.formats.zip_directory import END, MAX16
from swavg.storage.paths import reading


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average into the zip at ``path``; None if there is nothing."""
    with reading(path) as (file, read):
        return read_recipe(read, file.size)


def read_recipe(read: Read, size: int) -> str | None:
    """:func:`recipe_in` for a zip of ``size`` bytes."""
    tail_size = min(size, END.size + MAX16)
    tail = bytes(read(size - tail_size, tail_size))
    at = tail.rfind(b"PK\5\6")
    comment = tail[at + END.size :] if at >= 0 else b""
    return comment.decode(errors="replace") if comment.startswith(b'{"') else None


def comment_of(recipe: str) -> tuple[bytes, tuple[str, ...]]:
    """The comment that holds a recipe, and a note if it cannot."""
    comment = recipe.encode()
    if len(comment) <= MAX16:
        return comment, ()
    note = f"how it was made is not recorded: that takes {len(comment):,} bytes, of {MAX16:,}"
    return b"", (note,)
