"""Change the version that running servers serve, without failed requests.

    recsys rollout start version=V hosts=[A:8081,B:8081] gateways=[G:8080] store=releases
    recsys rollout canary version=V share=0.05 hosts=[...] gateways=[...] store=releases
    recsys rollout status | pause | resume | finish | rollback | unlock

start: load V on every host and its user tower on every gateway, switch hosts one by one, move the alias `production`.
canary: load V in the same way, give it to a share of the users, and judge it by their outcomes: a canary that is worse
is rolled back, one that loses less than `judge.margin` can be given to all by `finish`. The report is
canary-verdict.json and canary-verdict.html beside `state`.
pause: make the process that runs the rollout stop before its next step. resume: continue after a pause, a failure
or a crash. rollback: go back to the version before, which is still loaded, in the reverse order. unlock: take the lock
of the hosts from a rollout that does not end.

Exit code 0: done; 3: the canary is undecided, and its users keep it; 4: it was rolled back; 1: the command failed.

RECSYS_ADMIN_TOKEN holds the token for admin calls. The file `state` holds what is rolled out, and how far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


EXIT = {"promote": 0, "keep_on": 3, "roll_back": 4}


def main(config: DictConfig) -> None:
    """Run one action, print what it did, and write the page of a canary's verdict."""
    import contextlib
    import sys
    from pathlib import Path

    from recsys.cli.entry import INTERRUPTED
    from recsys.operations.rollout.actions import run_action

    try:
        verdict = run_action(config)
    except KeyboardInterrupt as error:
        print("interrupted; `resume` continues the rollout", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error
    if verdict is not None:
        state = Path(config.state or f"{config.store or 'releases'}/state/rollout.json")
        # The serving extra alone draws no pictures; the JSON file holds the same.
        with contextlib.suppress(ModuleNotFoundError):
            from recsys.reports.rollouts import write_canary_page

            print(write_canary_page(verdict, state.with_name("canary-verdict.html")))
        raise SystemExit(EXIT[verdict.decision])
