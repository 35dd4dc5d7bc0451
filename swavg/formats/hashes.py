"""Hashes in metadata: which of them hold for weights that are made anew."""

from __future__ import annotations

import re

from swavg.formats.layout import WriteRequest

_HASHES = {
    "blake2b", "blake3", "checksum", "checksums", "crc", "crc32", "digest", "fingerprint", "hash",
    "hashes", "md5", "md5sum", "sha", "sha1", "sha256", "sha256sum", "sha512", "xxhash",
}  # fmt: skip
_OF_OTHERS = {
    "base", "code", "commit", "config", "dataset", "datasets", "git", "image", "images",
    "license", "original", "parent", "pretrained", "prompt", "repo", "sd", "source", "ss",
    "teacher", "tokenizer", "train", "training", "vae", "vocab",
}  # fmt: skip


def is_stale(name: str) -> bool:
    """Whether metadata of this name are a hash of the weights themselves, which other weights do
    not have; those of a base model or of data (all of kohya's ``ss_``) hold as before."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    return not _HASHES.isdisjoint(words) and _OF_OTHERS.isdisjoint(words)


def stale_notes(request: WriteRequest) -> tuple[str, ...]:
    """What an output leaves out as untrue, in words."""
    stale = ", ".join(sorted(filter(is_stale, request.template.metadata)))
    return (f"left out of the metadata, as hashes of other weights: {stale}",) if stale else ()
