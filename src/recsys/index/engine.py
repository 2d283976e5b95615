"""faiss as an untyped module, because its own annotations lack most names and arguments."""

from typing import Any

import faiss as _faiss

faiss: Any = _faiss
