"""The only place that builds objects from configuration, and hands them what exists at run time alone."""

from recsys.build.data import build_data, objective_of, open_data, reachable, source_of
from recsys.build.model import build_model, build_towers, corpus_of
from recsys.build.objects import complete
from recsys.build.training import Miner, build_callbacks, build_module, check_metric
from recsys.instantiation import instantiate

__all__ = [
    "Miner",
    "build_callbacks",
    "build_data",
    "build_model",
    "build_module",
    "build_towers",
    "check_metric",
    "complete",
    "corpus_of",
    "instantiate",
    "objective_of",
    "open_data",
    "reachable",
    "source_of",
]
