"""Open a saved index. The classes it may be of are listed here, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.core.errors import UserError, nearest
from recsys.core.types import Float32Array
from recsys.index.ann_index import Effort, Index
from recsys.index.backends import HNSW, IVFSQ8, MIN_PQ_ITEMS, FaissFlat, IVFFlat, IVFPQFastScan
from recsys.index.engine import faiss
from recsys.index.exact import Exact
from recsys.index.files import DESCRIPTION, STRUCTURE, read_description, read_structure

CLASSES: dict[str, type[Exact] | type[FaissFlat] | type[HNSW] | type[IVFFlat] | type[IVFPQFastScan]] = {
    kind.__name__: kind for kind in (Exact, FaissFlat, HNSW, IVFFlat, IVFSQ8, IVFPQFastScan)
}
STRUCTURES = {
    "FaissFlat": "IndexFlatIP",
    "HNSW": "IndexHNSWFlat",
    "IVFFlat": "IndexIVFFlat",
    "IVFSQ8": "IndexIVFScalarQuantizer",
    "IVFPQFastScan": "IndexIVFPQFastScan",
}


def load_index(folder: Path, embeddings: Float32Array, verify: bool = True) -> Index:
    """The index that `save` wrote into `folder`, memory-mapped.

    Args:
        folder: holds `item_index.json` and, for most classes, `item_index.faiss`.
        embeddings: the ones it was built from, [N, D], best memory-mapped (`np.load(path, mmap_mode="r")`).
        verify: compare the digest; a release that has just verified its files need not read them twice.

    Raises:
        UserError: a file is missing or damaged, the class is unknown, or the embeddings are not of this index.
    """
    path = folder / DESCRIPTION
    content = read_description(folder)
    name = content.get("class")
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(f"{path}: unknown class {name!r} of index{nearest(str(name), CLASSES)}")
    try:
        index = CLASSES[name](**content["parameters"])
        shape = (int(content["num_items"]), int(content["dim"]))
        effort = Effort(**{key: int(value) for key, value in content["effort"].items()})
        files: dict[str, dict[str, Any]] = {
            file: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for file, entry in content["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged description of a {name} index ({error})") from error
    if effort.k < 1 or effort.breadth < 0 or effort.refine < 1:
        raise UserError(f"{path}: damaged, found effort {effort._asdict()}")
    if embeddings.shape != shape or embeddings.dtype != "float32":
        found = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise UserError(f"{path}: the item embeddings are {found}, but the index holds float32 {list(shape)}")
    ann = None
    if name in STRUCTURES and STRUCTURE not in files and not (name == "IVFPQFastScan" and shape[0] < MIN_PQ_ITEMS):
        raise UserError(f"{path}: damaged, a {name} index of {shape[0]} items needs {STRUCTURE}; none is listed")
    if STRUCTURE in files and name in STRUCTURES:
        ann = read_structure(folder, files[STRUCTURE], verify)
        built = (type(ann).__name__, ann.ntotal, ann.d, ann.metric_type)
        expected = (STRUCTURES[name], *shape, faiss.METRIC_INNER_PRODUCT)
        if built != expected:
            raise UserError(f"{folder / STRUCTURE}: found {built} (class, items, dim, metric), expected {expected}")
    index.restore(embeddings, ann)
    index.effort = effort
    return index
