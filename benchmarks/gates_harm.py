"""Measure if the gates stop harmed candidates and let honest ones pass.

    python benchmarks/gates_harm.py [--folder DIR] [--only NAME ...] [--seed N] [--users N --items N --events N]

In a small simulated world, a release is served from day 50 on, and candidates are trained on the days after it. Each
harm of `harms/` prints the gates that stopped it, and 20 honest retrainings (10 days, 2 seeds) print if they pass.
Bars: every harm is stopped by one of its gates; at least 19 of the honest ones pass. Exit code 1 if a bar is missed.
The benchmark takes minutes on two cores. Finished runs in the folder are used again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "harms"))

from of_data import HARMS
from of_models import PACK_HARMS, TRAINING_HARMS, WEIGHT_HARMS, leaking, packed, with_weights
from scene import Scene

from recsys.core.errors import UserError
from recsys.data.simulation.synthetic import WorldSettings
from recsys.experiments.trained_run import TrainedRun
from recsys.operations.gates.verdict import Verdict

SERVED_DAY = 50
Judged = Callable[[], Verdict]


def harms(scene: Scene) -> Iterator[tuple[str, tuple[str, ...], Judged]]:
    """Yield each harm: name, gates of which one must stop it, and a function that returns the verdict."""
    day = SERVED_DAY + 1
    begin = scene.second(SERVED_DAY)

    def sound() -> TrainedRun:
        return scene.run(f"day{day}_seed1", day=day, seed=1)

    for harm, gates in HARMS.items():
        yield (
            harm.__name__,
            gates,
            lambda harm=harm: scene.judge(scene.run(harm.__name__, harm(scene.until(day), begin), seed=1)),
        )
    for harm, gates in WEIGHT_HARMS.items():
        yield harm.__name__, gates, lambda harm=harm: scene.judge(with_weights(sound(), harm.__name__, harm))
    for harm, gates in PACK_HARMS.items():
        yield harm.__name__, gates, lambda harm=harm: scene.judge(sound(), packed(scene, sound(), harm))
    for name, (overrides, gates) in TRAINING_HARMS.items():
        yield name, gates, lambda name=name, overrides=overrides: scene.judge(scene.run(name, None, day, 1, *overrides))
    yield "stale", ("fresh",), lambda: scene.judge(scene.run("day40", day=40, seed=1))
    yield (
        "left_behind",
        ("fresh",),
        lambda: scene.judge(
            scene.run("day50", day=SERVED_DAY), root=scene.until(60).write(scene.folder / "data/day60")
        ),
    )
    yield (
        "trained_on_the_window",
        ("border",),
        lambda: scene.judge(
            scene.run("day60_seed1", day=60, seed=1), root=scene.until(day).write(scene.folder / f"data/day{day}")
        ),
    )

    def leaked() -> Verdict:
        with leaking():
            scene.run("leaked", None, day, 1, "refit=true")
        # The gates run without the leak.
        return scene.judge(scene.run("leaked"))

    yield "learned_the_test_part", ("border", "too_good"), leaked


def honest(scene: Scene) -> Iterator[tuple[str, Judged]]:
    """Yield twenty retrainings on new data: name, and a function that returns the verdict."""
    for day in range(SERVED_DAY + 1, SERVED_DAY + 11):
        for seed in (1, 2):
            name = f"day{day}_seed{seed}"
            yield name, lambda name=name, day=day, seed=seed: scene.judge(scene.run(name, day=day, seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of all files; finished runs in it are used again")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="harms, or `honest`")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=900)
    parser.add_argument("--events", type=int, default=40_000)
    asked = parser.parse_args()
    sizes = {"num_users": asked.users, "num_items": asked.items, "num_events": asked.events, "days": 60}
    world = WorldSettings(**sizes, num_categories=8, topics_per_category=4, seed=asked.seed)
    logging.getLogger("recsys").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(asked.folder or Path(scratch), SERVED_DAY, world)
        missed = []
        for name, gates, judged in harms(scene):
            if asked.only and name not in asked.only:
                continue
            try:
                verdict = judged()
                told, ok = ", ".join(verdict.stopped_by) or "NOTHING", bool({*gates} & {*verdict.stopped_by})
            except UserError as error:
                told, ok = f"refused before any gate: {error}", False
            missed += [] if ok else [name]
            print(f"{'stopped' if ok else 'MISSED ':8} {name:24} for {'/'.join(gates):24} by {told}", flush=True)
        passed, count = 0, 0
        for name, judged in honest(scene):
            if asked.only and "honest" not in asked.only:
                continue
            verdict = judged()
            passed, count = passed + verdict.passed, count + 1
            why = "; ".join(f"{o.gate} {o.check}: {o.value:.4g} against {o.threshold:.4g}" for o in verdict.failed)
            print(f"{'passed' if verdict.passed else 'STOPPED':8} {name:24} {why}", flush=True)
    print(f"harms missed: {', '.join(missed) or 'none'}; honest retrainings that passed: {passed} of {count}")
    if missed or passed < 0.95 * count:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
