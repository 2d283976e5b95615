"""Approximate nearest neighbours behind one protocol: build, search, tune, save, load. Imports no torch."""

from recsys.index.allowed import Allowed
from recsys.index.ann_index import Effort, Index
from recsys.index.auto import Auto
from recsys.index.backends import HNSW, IVFSQ8, FaissFlat, IVFFlat, IVFPQFastScan
from recsys.index.exact import Exact
from recsys.index.extended import Extended
from recsys.index.loading import load_index
from recsys.index.topk import exact_search
from recsys.index.tuning import Measure, Tuning, tune
from recsys.index.users import search_users

__all__ = [
    "HNSW",
    "Allowed",
    "Auto",
    "Effort",
    "Exact",
    "Extended",
    "FaissFlat",
    "IVFFlat",
    "IVFPQFastScan",
    "IVFSQ8",
    "Index",
    "Measure",
    "Tuning",
    "exact_search",
    "load_index",
    "search_users",
    "tune",
]
