"""Change the version that running servers serve, without failed requests.

    recsys rollout start version=V hosts=[A:8081,B:8081] gateways=[G:8080] store=releases
    recsys rollout canary version=V share=0.05 hosts=[...] gateways=[...] store=releases
    recsys rollout status | pause | resume | finish | rollback | unlock

start: load V on every host and its user tower on every gateway, switch hosts one by one, move the alias `production`.
canary: load V in the same way, give it to a share of the users, and stop; `finish` gives it to all.
pause: make the process that runs the rollout stop before its next step. resume: continue after a pause, a failure
or a crash. rollback: go back to the version before, which is still loaded, in the reverse order. unlock: take the lock
of the hosts from a rollout that does not end.

RECSYS_ADMIN_TOKEN holds the token for admin calls. The file `state` holds what is rolled out, and how far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(config: DictConfig) -> None:
    """Run one action, and print what it did."""
    import sys

    from recsys.cli.entry import INTERRUPTED
    from recsys.operations.rollout.actions import run_action

    try:
        run_action(config)
    except KeyboardInterrupt as error:
        print("interrupted; `resume` continues the rollout", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from error
