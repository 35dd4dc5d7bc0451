"""Folders as Orbax lists them, of one array that tensorstore wrote."""

import json

import tensorstore


def write_array(path, array, chunk):
    """An item at ``path`` that holds ``w`` in plain zarr, with chunks of this shape."""
    path.mkdir(parents=True)
    store = tensorstore.open(
        {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/w/"}},
        create=True,
        dtype=array.dtype,
        shape=array.shape,
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk),
    ).result()
    store.write(array).result()
    listed = {
        "key_metadata": [{"key": "w", "key_type": 2}],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
    listing = {"tree_metadata": {"('w',)": listed}, "use_ocdbt": False, "use_zarr3": False}
    (path / "_METADATA").write_text(json.dumps(listing))
