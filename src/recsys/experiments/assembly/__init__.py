"""Builds data, model and training step from a configuration."""

from recsys.core.instantiate import instantiate
from recsys.experiments.assembly.data import build_data, freeze_suppressed, open_data, source_of, target_sampling_of
from recsys.experiments.assembly.model import (
    build_item_bias,
    build_model,
    build_towers,
    corpus_of,
    has_item_bias,
    new_items_bias,
    new_items_scale,
)
from recsys.experiments.assembly.objects import complete
from recsys.experiments.assembly.oracle import oracle_metrics
from recsys.experiments.assembly.sharding import choose_sharding, keep_replicated
from recsys.experiments.assembly.training import build_callbacks, build_module, check_metric

__all__ = [
    "build_callbacks",
    "build_data",
    "build_item_bias",
    "build_model",
    "build_module",
    "build_towers",
    "check_metric",
    "choose_sharding",
    "complete",
    "freeze_suppressed",
    "keep_replicated",
    "corpus_of",
    "has_item_bias",
    "new_items_bias",
    "new_items_scale",
    "instantiate",
    "target_sampling_of",
    "open_data",
    "oracle_metrics",
    "source_of",
]
