"""faiss, untyped: the annotations that it ships lack most of the names and arguments that exist."""

from typing import Any

import faiss as _faiss

faiss: Any = _faiss
