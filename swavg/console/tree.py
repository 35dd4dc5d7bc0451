"""Tensors as a tree of modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from swavg.analysis import Entry
from swavg.short_repr import one_line


@dataclass(slots=True)
class Node:
    """A module with its sums (tied tensors once), or a tensor: then it has an ``entry``."""

    entry: Entry | None = None
    children: dict[str, Node] = field(default_factory=dict)
    tensors: int = 0
    elements: int = 0
    nbytes: int = 0
    form: object = None


def tree_of(entries: Sequence[Entry]) -> Node:
    root = Node()
    for entry in entries:
        node = root
        own = entry.tied_to is None
        # A name may be both a tensor and a module; the empty part keeps them apart.
        *modules, leaf = entry.name.split(".")
        for part in (*modules, None):
            node.tensors += 1
            node.elements += entry.elements * own
            node.nbytes += entry.nbytes * own
            if part is not None:
                node = node.children.setdefault(part + ".", Node())
        node.children[leaf] = Node(entry)
    forms: dict[object, int] = {}
    _form(root, forms)
    return root


def _form(node: Node, forms: dict[object, int]) -> int:
    """A number that equal subtrees share: same names, dtypes and shapes."""
    stack: list[tuple[Node, bool]] = [(node, False)]
    while stack:
        each, ready = stack.pop()
        if not ready:
            stack.append((each, True))
            stack += [(child, False) for child in each.children.values()]
            continue
        entry = each.entry
        own: object = entry and (entry.dtype, entry.shape, entry.tied_to)
        inside = tuple((name, child.form) for name, child in sorted(each.children.items()))
        each.form = forms.setdefault((own, inside), len(forms))
    assert isinstance(node.form, int)
    return node.form


def branches(root: Node, *, alike: bool) -> Iterator[tuple[str, Node, int]]:
    """Label, node, and how many modules the line stands for; numbered ones that are ``alike`` in a
    row are one."""
    stack = [("", member) for member in reversed(_members(root, alike))]
    while stack:
        before, (name, node, times) = stack.pop()
        yield before + name, node, times
        stack += [(before + "  ", member) for member in reversed(_members(node, alike))]


def _members(node: Node, alike: bool) -> list[tuple[str, Node, int]]:
    """The children as (label, node, times), numbered ones in the order of their numbers."""
    names = list(node.children)
    if all(name.rstrip(".").isdecimal() for name in names):
        names.sort(key=lambda name: int(name.rstrip(".")))
    found: list[tuple[str, Node, int]] = []
    at = 0
    while at < len(names):
        name, child = names[at], node.children[names[at]]
        end = at + 1
        while alike and end < len(names) and _follows(node, names[end - 1], names[end]):
            end += 1
        label = one_line(name.rstrip(".") if child.entry is None else name)
        if end - at > 1:
            label += f" to {names[end - 1].rstrip('.')}"
        # A module with one thing in it needs no line of its own.
        else:
            while len(child.children) == 1:
                (inner,) = child.children
                label += "." + one_line(inner.rstrip("."))
                child = child.children[inner]
        found.append((label, child, end - at))
        at = end
    return found


def _follows(node: Node, before: str, after: str) -> bool:
    one, other = before.rstrip("."), after.rstrip(".")
    return (
        one.isdecimal()
        and other.isdecimal()
        and int(other) == int(one) + 1
        and node.children[before].entry is None
        and node.children[before].form == node.children[after].form
    )
