"""Runs of baselines: each is tuned on validation, fitted on train + val, measured on test, and has a run folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from recsys.baselines.interactions import Generator, Interactions
from recsys.baselines.popularity import Popularity
from recsys.baselines.request_batches import request_batches
from recsys.baselines.tuning import Axis, Settings, axes_of, describe, search
from recsys.core.errors import UserError, nearest
from recsys.core.progress import Progress, say, track
from recsys.data.dataset import Part, PreparedDataset, Requests
from recsys.evaluation.metrics import RetrievalMetrics
from recsys.evaluation.ranking import evaluate, per_user_table
from recsys.evaluation.relevance import rolling_requests
from recsys.experiments.assembly import check_metric, freeze_suppressed, instantiate, open_data, oracle_metrics
from recsys.experiments.environment import git_commit, peak_memory_bytes
from recsys.experiments.origins import earlier_origins
from recsys.experiments.run_folder import RunFolder, RunStatus


def measure_baselines(config: DictConfig, path: Path) -> tuple[dict[str, RunFolder], dict[str, UserError]]:
    """Measure each of `config.generators` in the run folder `path/<name>`; finished ones are not measured again.

    Args:
        config: configuration composed from `conf/baselines.yaml`.
        path: folder of the run folders.

    Returns:
        The finished folders by name, and the errors of the generators that do not suit the data.

    Raises:
        UserError: If a name is unknown, or the data has no validation or test part.
    """
    grids: Any = OmegaConf.to_container(config.grids)
    known: Any = OmegaConf.to_container(config.generator, resolve=True)
    for name in (*config.generators, *grids):
        if name not in known:
            raise UserError(f"generators: no generator '{name}'{nearest(str(name), known)}")
    axes = {
        name: axes_of(name, grids.get(name) or {}, start=known[name], time=config.data.time)
        for name in config.generators
    }
    check_metric(config.evaluation.metric)
    freeze_suppressed(config, path)
    dataset = open_data(config)
    for part in ("val", "test"):
        if not len(dataset.requests(part).user_idx):
            raise UserError(
                f"{dataset.path}: no events in the {part} part; baselines are chosen on val, measured on test"
            )
    runs, failed = {}, {}
    for name in track(axes, "baselines", total=len(axes), unit="baselines"):
        try:
            runs[name] = _Baseline(name, config, dataset=dataset, path=path).measure(axes[name])
        except UserError as error:
            failed[name] = error
            say(f"{name}: left out: {error}")
    return runs, failed


class _Baseline:
    """One generator on one data set; the run folder records its progress."""

    def __init__(self, name: str, config: DictConfig, *, dataset: PreparedDataset, path: Path) -> None:
        self.name, self.config, self.dataset = name, config, dataset
        asked = {key: config[key] for key in ("data", "split", "seed", "exclude_seen", "evaluation")}
        grid = config.grids.get(name) or {}
        self.run = RunFolder(path / name, OmegaConf.create(asked | {"generator": config.generator[name], "grid": grid}))
        fingerprint = self.run.state.dataset_fingerprint or dataset.meta.fingerprint
        if fingerprint != dataset.meta.fingerprint:
            raise UserError(
                f"{self.run.path / 'run.json'}: measured on data {fingerprint}, but the source now gives "
                f"{dataset.meta.fingerprint}: the data has changed; choose another hydra.run.dir"
            )
        self.run.claim()
        self._begin, self._before = time.monotonic(), self.run.state.seconds

    def measure(self, axes: Sequence[Axis]) -> RunFolder:
        """Tune and test the generator, unless the run is finished."""
        run, metric = self.run, self.config.evaluation.metric
        if run.state.status == RunStatus.FINISHED:
            return run
        run.update(
            status=RunStatus.RUNNING,
            generator=self.name,
            metric=metric,
            dataset_fingerprint=self.dataset.meta.fingerprint,
            git_commit=git_commit(),
        )
        settings = self._tune(axes)
        self._test(settings)
        run.update(
            status=RunStatus.FINISHED,
            settings=settings,
            seconds=self._seconds(),
            peak_memory_bytes=peak_memory_bytes(),
        )
        return run

    def _tune(self, axes: Sequence[Axis]) -> Settings:
        """Return the best settings on validation, and write their metrics to `metrics.json`."""
        metric, tried = self.config.evaluation.metric, self.run.state.tried
        # Others than popularity take too long to fit for each origin.
        is_popularity = self.config.generator[self.name]._target_ == f"{Popularity.__module__}.{Popularity.__name__}"
        views = earlier_origins(self.dataset, self.config.evaluation.get("origins", 1) if is_popularity else 1)
        events = [Interactions(view, "train") for view in views]

        def score(settings: Settings) -> float:
            for earlier in tried:
                if earlier["settings"] == settings:
                    return float(earlier[metric])
            found = []
            for view, learned in zip(views, events, strict=True):
                generator = self._fitted(settings, learned)
                found.append(self._evaluate(generator, view, part="val", requests=view.requests("val")))
            if metric not in found[0]:
                raise UserError(f"evaluation.metric={metric}: this slice has no validation request")
            # A slice may have no request at an origin.
            mean = float(np.mean([values[metric] for values in found if metric in values]))
            if all(mean > earlier[metric] for earlier in tried):
                self.run.write_metrics(found[0])
            tried.append({"settings": settings, metric: mean})
            self.run.update(tried=tried, seconds=self._seconds())
            of = f", mean of {len(views)} origins" if len(views) > 1 else ""
            say(f"{self.name} {describe(settings)}: {metric} {mean:.4f}{of}")
            return mean

        node = self.config.generator[self.name]
        return search({axis.name: node[axis.name] for axis in axes}, axes, score=score)

    def _test(self, settings: Settings) -> None:
        data, metrics = self.dataset.refit(), self.run.metrics
        generator = self._fitted(settings, Interactions(self.dataset, "val"))
        counted = self._metrics(data, "test", keep_users=True)
        metrics |= self._evaluate(generator, data, part="test", requests=data.requests("test"), metrics=counted)
        if self.config.evaluation.rolling:
            requests = rolling_requests(data, "test")
            metrics |= self._evaluate(generator, data, part="test", requests=requests, rolling=True)
        metrics |= oracle_metrics(self.config, data, part="test")
        self.run.write_per_user(per_user_table(data, counted))
        self.run.write_metrics(metrics)

    def _fitted(self, settings: Settings, events: Interactions) -> Generator:
        generator: Generator = instantiate(self.config.generator[self.name], **settings)
        with Progress(f"fitting {self.name}"):
            generator.fit(events)
        return generator

    def _evaluate(
        self,
        generator: Generator,
        data: PreparedDataset,
        *,
        part: Part,
        requests: Requests,
        metrics: RetrievalMetrics | None = None,
        rolling: bool = False,
    ) -> dict[str, float]:
        metrics = metrics or self._metrics(data, part)
        batches = track(
            request_batches(data, requests),
            f"{self.name} on {part}",
            total=len(requests.user_idx),
            unit="requests",
            size=lambda pair: len(pair[1].user_idx),
        )
        values = evaluate(
            generator,
            data,
            part=part,
            batches=batches,
            metrics=metrics,
            exclude_seen=self.config.exclude_seen,
            rolling=rolling,
        )
        return {f"{part}{'_rolling' if rolling else ''}/{name}": value for name, value in values.items()}

    def _metrics(self, data: PreparedDataset, part: Part, *, keep_users: bool = False) -> RetrievalMetrics:
        # The corpus of a model that reads ids and features, so that coverage has the same denominator.
        return RetrievalMetrics(data, len(data.corpus(reads_features=True)), keep_users=keep_users, part=part)

    def _seconds(self) -> float:
        return round(self._before + time.monotonic() - self._begin, 3)
