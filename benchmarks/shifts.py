"""Gain of a prior shift on validation and on test: does one predict the other?

    python train.py +experiment=recommended blend=false refit=false test=false trial_epochs=null hydra.run.dir=RUN ...
    python benchmarks/shifts.py RUN ...

Each RUN is the folder of such a run on data with a temporal split. Every variant, and every pair of variants with equal
weights, is measured with every shift of `SHIFTS`, without training again. The table has the mean relative gains, and
for how many of them the gain in test recall@10 has the sign of the gain on validation.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recsys.experiments.assembly import target_sampling_of
from recsys.experiments.baseline_check import best_half_life
from recsys.experiments.blend_selection import SHIFTS
from recsys.experiments.blend_validation import BlendValidation
from recsys.experiments.run_folder import RunFolder
from recsys.training.frequency import prior_shift

CHOSEN_BY, JUDGED_BY = "val/recall@20", ("test/recall@10", "test/ndcg@10", "test/recall@100")


def main() -> None:
    """Print a table in Markdown."""
    print(f"| data | shift | {CHOSEN_BY} | {' | '.join(JUDGED_BY)} | same sign |")
    print(f"|{'---|' * (len(JUDGED_BY) + 4)}")
    for folder in sys.argv[1:]:
        for shift, gains in gains_of(Path(folder)).items():
            same = int((np.sign(gains[:, 0]) == np.sign(gains[:, 1])).sum())
            means = " | ".join(f"{mean:+.1%}" for mean in gains.mean(0))
            print(f"| {Path(folder).name} | {shift} | {means} | {same} of {len(gains)} |", flush=True)


def gains_of(folder: Path) -> Mapping[str, np.ndarray]:
    """Return the relative gains of each shift, float64 [blends, metrics]."""
    configs = {path.parent.name: OmegaConf.load(path) for path in sorted(folder.glob("variants/*/config.yaml"))}
    first = next(iter(configs.values()))
    assert isinstance(first, DictConfig)
    parts = [BlendValidation(first, fits_level=False), BlendValidation(first, fits_level=False, part="test")]
    for name, config in configs.items():
        assert isinstance(config, DictConfig)
        for part in parts:
            part.add(name, config, run=RunFolder(folder / "variants" / name, config))
    data, days = parts[0].dataset, float(best_half_life(first, parts[0].dataset))
    blends = [{name: 1.0} for name in configs]
    blends += [{one: 0.5, other: 0.5} for one, other in itertools.combinations(configs, 2)]
    gains: dict[str, list[list[float]]] = {}
    for weights in blends:
        targets = target_sampling_of(configs[max(weights, key=lambda name: weights[name])])
        plain = [part.measure(weights) for part in parts]
        for weight, power in SHIFTS:
            found = {}
            for part, recent in zip(parts, (data, data.refit()), strict=True):
                # The models were trained without the events of validation, but an index is built with them.
                bias = prior_shift(data, days, target_sampling=targets, power=power, recent=recent).mul(weight).float()
                found |= part.measure(weights, bias)
            before = plain[0] | plain[1]
            row = [found[name] / before[name] - 1 for name in (CHOSEN_BY, *JUDGED_BY)]
            gains.setdefault(f"{weight:g} prior^{power:g} of {days:g} days", []).append(row)
    return {shift: np.array(rows) for shift, rows in gains.items()}


if __name__ == "__main__":
    main()
