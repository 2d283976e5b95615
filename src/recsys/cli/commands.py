"""The subcommands of `recsys` and their properties on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: name on the command line.
        summary: one line for `recsys --help`.
        usage: arguments in the usage line.
        extra: extra of the package that installs the libraries of the command.
        words: key that arguments without `=` are values of; empty if there is none.
        takes_several: whether `words` is a list.
        operands: value of `words` -> keys that the arguments without `=` after it are values of.
        is_job: whether Hydra runs the command, with its own options (`--multirun`, `--cfg job`) and its run folder.
    """

    name: str
    summary: str
    usage: str
    extra: str
    words: str = ""
    takes_several: bool = False
    operands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_job: bool = True

    @property
    def config_name(self) -> str:
        """Name of the module of the command, and of its file in `conf/`."""
        return self.name.replace("-", "_")


_JOB = "[GROUP=OPTION ...] [KEY=VALUE ...]"
COMMANDS = {
    command.name: command
    for command in (
        Command("train", "train one model, or the best of several", f"[+experiment=NAME] {_JOB}", "train"),
        Command("index", "publish a run as a release", f"run=RUN {_JOB}", "train"),
        Command("recommend", "write ranked items for many users to a file", f"run=RUN out=FILE {_JOB}", "train"),
        Command("serve", "answer requests over HTTP", f"release=VERSION|ALIAS {_JOB}", "serving"),
        Command("ingest", "store the events of Kafka topics", "kafka=HOST:PORT topic=TOPIC [KEY=VALUE ...]", "kafka",
                is_job=False),
        Command("retrain", "run one retraining cycle: train, judge, publish, roll out", f"data.root=DIR {_JOB}", "all"),
        Command("refresh", "refresh the index of a served release from newer data",
                f"release=ALIAS data.root=DIR {_JOB}", "all"),
        Command("sweep", "run a sweep on this machine, or show its runs", "FILE|DIR [KEY=VALUE ...]", "train", "file",
                is_job=False),
        Command("compare", "compare runs on metrics, with significance tests", "RUN RUN ... [KEY=VALUE ...]", "train",
                "runs", takes_several=True, is_job=False),
        Command("baselines", "tune and measure heuristic baselines", f"hydra.run.dir=OUT {_JOB}", "train"),
        Command("generators", "compare candidate generators under one budget", f"releases=[ALIAS] out=FILE {_JOB}",
                "train", "action"),
        Command("rollout", "change the version that servers answer with", "ACTION [KEY=VALUE ...]", "serving", "action",
                is_job=False),
        Command("gates", "judge a run before it replaces the served release", f"run=RUN against=ALIAS {_JOB}", "all"),
        Command("lineage", "show what a release was made from", "VERSION|ALIAS [KEY=VALUE ...]", "train", "version",
                is_job=False),
        Command("embed-items", "embed new items for the index of a release", "release=ALIAS items=FILE out=FILE", "all",
                is_job=False),
        Command("exposures", "write recorded impressions as data with exposures", "out=DIR [KEY=VALUE ...]", "serving",
                is_job=False),
        Command("forget", "erase users from what servers keep, and keep them out", "USER ... [KEY=VALUE ...]",
                "serving", "user", takes_several=True, is_job=False),
        Command("releases", "list, show and delete releases, and move aliases",
                "list | show VERSION|ALIAS | alias ALIAS VERSION | rollback [ALIAS] | delete VERSION |"
                " keygen PATH | sign VERSION | verify VERSION [KEY=VALUE ...]",
                "serving", "action", is_job=False,
                operands={"show": ("version",), "alias": ("alias", "version"), "rollback": ("alias",),
                          "delete": ("version",), "keygen": ("path",), "sign": ("version",), "verify": ("version",)}),
    )
}  # fmt: skip
