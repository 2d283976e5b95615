"""A SLURM cluster of two nodes on this host, where Debian's slurm-wlm and munge are installed (as root)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo")
SYSTEM = f"{os.environ['PATH']}:/usr/sbin"
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    return os.geteuid() == 0 and all(shutil.which(program, path=SYSTEM) for program in PROGRAMS)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the environment in which `sbatch` and `srun` find the cluster."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SYSTEM}
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=free_ports(3)))
    version = subprocess.run(["slurmd", "-V"], env=environment, capture_output=True, text=True, check=True).stdout
    # Earlier versions cannot do without.
    plugin = "disabled" if int(version.split()[-1].partition(".")[0]) >= 23 else "cgroup/v1"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o400)
    munge = {name: f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")}
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge.values()],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / "daemons.log").open("ab") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                _wait((folder / "munge.socket").exists, daemons, folder)

        def are_idle() -> bool:
            found = subprocess.run(
                ["sinfo", "--noheader", "--format=%D %t"], env=environment, capture_output=True, text=True, check=False
            )
            return found.stdout.split() == ["2", "idle"]

        _wait(are_idle, daemons, folder)
        yield environment

        def is_empty() -> bool:
            return not subprocess.run(
                ["squeue", "--noheader"], env=environment, capture_output=True, check=False
            ).stdout

        # Steps outlive the daemons.
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
        _wait(is_empty, daemons, folder)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait()


def _wait(is_ready: object, daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    assert callable(is_ready)
    for _ in range(1200):
        if is_ready():
            return
        assert all(daemon.poll() is None for daemon in daemons), (folder / "daemons.log").read_text()
        time.sleep(0.1)
    raise AssertionError((folder / "daemons.log").read_text() + (folder / "slurmctld.log").read_text())
