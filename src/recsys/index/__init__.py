"""Approximate nearest neighbours behind one protocol: build, search, tune, save, load. Imports no torch."""

from recsys.index.allowed import AllowedRows
from recsys.index.ann_index import Effort, Index
from recsys.index.auto import Auto
from recsys.index.backends import HNSW, FaissFlat
from recsys.index.exact import Exact
from recsys.index.extended import ExtendedIndex
from recsys.index.inverted_file import IVFSQ8, IVFFlat, IVFPQFastScan
from recsys.index.merging import search_users
from recsys.index.storage import load_index, save_index
from recsys.index.topk import exact_search
from recsys.index.tuning import Measurement, Tuning, tune
from recsys.index.vector_database import InDatabase

__all__ = [
    "HNSW",
    "AllowedRows",
    "Auto",
    "Effort",
    "Exact",
    "ExtendedIndex",
    "FaissFlat",
    "IVFFlat",
    "IVFPQFastScan",
    "IVFSQ8",
    "InDatabase",
    "Index",
    "Measurement",
    "Tuning",
    "exact_search",
    "load_index",
    "save_index",
    "search_users",
    "tune",
]
