"""One training on a Ray cluster.

    pip install 'recsys[train,ray]'
    python deploy/launching/ray_train.py --workers 2 data.root=/shared/events hydra.run.dir=/shared/runs/first
    python deploy/launching/ray_train.py --workers 8 --gpu trainer.accelerator=gpu ...

Arguments besides these are those of `recsys train`. The last line is the run folder, which all workers must share.
"""

from __future__ import annotations

import argparse
from typing import Any

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(settings: dict[str, Any]) -> None:
    """Train in one worker. Ray has set up `torch.distributed`, which `trainer=multinode` then uses."""
    import recsys

    recsys.train(["trainer=multinode", *settings["overrides"]], path=settings["path"])


def main() -> None:
    """Start the workers, and print the run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True, help="processes, one for each GPU")
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    given, overrides = parser.parse_known_args()
    path = next((word.partition("=")[2] for word in overrides if word.startswith("hydra.run.dir=")), None)
    if path is None:
        parser.error("hydra.run.dir: missing, expected a folder that all workers share")
    trainer = TorchTrainer(
        work,
        train_loop_config={"overrides": [w for w in overrides if not w.startswith("hydra.run.dir=")], "path": path},
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpu),
        run_config=RunConfig(storage_path=f"{path}/.ray"),
    )
    trainer.fit()
    print(path)


if __name__ == "__main__":
    main()
