"""Run one retraining cycle: new events, training, gates, publishing, rollout, and rollback if servers fail.

    recsys retrain data.root=DIR                               events that arrived in DIR since the last cycle
    recsys retrain data.root=DIR "train=['+experiment=NAME','model.dim=32']"
    recsys retrain data.root=DIR hosts=[A:8081,B:8081] gateways=[G:8080]
    recsys retrain data.root=DIR every=1d                      one cycle a day, on this machine
    recsys retrain data.root=DIR gates.volume.max_ratio=3.2    judge the stopped candidate again with this setting
    recsys retrain accept=CYCLE why="..."                      release the candidate of a stopped cycle anyway

The same command continues a cycle that was killed. Exit code 0: the candidate is served, or there is nothing to do;
3: gates stopped a cycle, and nothing was released since; 4: the candidate was rolled back; 1: the command failed. The
last line of the output names the outcome. FOLDER/MODEL/cycles.html shows all cycles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from recsys.operations.cycle.plan import CyclePlan
    from recsys.operations.cycle.state import Cycle
    from recsys.reports.cycles.notify import Notifier

EXIT = {"kept": 0, "stopped": 3, "rolled_back": 4}
# Keys that the commands in messages leave out: secrets, and what is meant for one call only.
_LEFT_OUT = ("admin_token", "notify", "accept", "why", "by", "force", "every")


def main(config: DictConfig) -> None:
    """Run one cycle, or one after the other if `every` is set."""
    import sys

    from recsys.operations.cycle.schedule import loop, parse_every

    if config.every is not None and config.accept is None:
        words = sys.argv[2:] if sys.argv[1:2] == ["retrain"] else sys.argv[1:]
        once = [word for word in words if word.partition("=")[0] != "every"]
        return loop([sys.executable, "-m", "recsys.cli", "retrain", *once], parse_every(config.every))
    from recsys.reports.cycles.notify import Notifier

    notifier = Notifier(config)
    try:
        plan, cycle = _run(config, notifier)
    except Exception as error:
        notifier.failed(error)
        raise
    from recsys.core.screen import screen
    from recsys.reports.cycles.stop_advice import print_stops
    from recsys.reports.cycles.tables import result_table

    if cycle is not None:
        result_table(cycle).print(screen())
    stops = print_stops(plan)
    if cycle is not None:
        print(cycle.outcome, cycle.version or "")
    elif stops:
        print("stopped", stops[-1].version or "")
    else:
        print("nothing new")
    code = 0 if cycle is None else EXIT[str(cycle.outcome)]
    raise SystemExit(code or (EXIT["stopped"] if stops else 0))


def _run(config: DictConfig, notifier: Notifier) -> tuple[CyclePlan, Cycle | None]:
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from recsys.cli.preflight import check_data
    from recsys.core.errors import UserError
    from recsys.experiments.compose import compose_training
    from recsys.experiments.overrides import quoted
    from recsys.operations.cycle.cycle import run_cycle
    from recsys.operations.cycle.plan import CyclePlan
    from recsys.operations.cycle.stops import AcceptRequest
    from recsys.reports.cycles.write import write_cycles_page, write_pages

    request = None
    if config.accept is not None:
        who = None if config.by is None else str(config.by)
        request = AcceptRequest(cycle=str(config.accept), why="" if config.why is None else str(config.why), who=who)
    elif config.why is not None or config.by is not None:
        raise UserError("why: expected accept=CYCLE, the stopped cycle that the reason is for")
    # The run of an accepted cycle is finished, so neither data nor settings of training are needed.
    root = "" if OmegaConf.is_missing(config.data, "root") else str(config.data.root)
    if request is None and not root:
        raise UserError("data.root: missing, expected data.root=DIR")
    if request is None and "://" not in root:
        check_data(Path(root), "parquet")
    training, variants = compose_training(["data=parquet", f"data.root={quoted(root)}", *config.train])
    words = [*HydraConfig.get().overrides.task, *HydraConfig.get().overrides.hydra]
    command = [
        word
        for word in words
        if word.partition("=")[0].lstrip("+") not in _LEFT_OUT and not word.startswith("hydra.mode")
    ]
    plan = CyclePlan(config, training, variants=variants, command=command)

    def report(cycle: Cycle) -> None:
        write_pages(plan, cycle)
        if cycle.step == "end":
            notifier.ended(plan, cycle)

    cycle = run_cycle(plan, config.wait, request=request, report=report)
    write_cycles_page(plan)
    return plan, cycle
