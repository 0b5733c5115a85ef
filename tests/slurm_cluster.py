"""A real SLURM cluster of two nodes on this machine, for tests: own munge key, own ports, nothing outside its folder.

with running_cluster() as cluster:
    environment = os.environ | cluster.environment      # SLURM_CONF: sbatch, squeue ... now mean this cluster
    assert cluster.wait_for(job_id, timeout_s=60)["JobState"] == "COMPLETED"
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
NODES = ("n1", "n2")
GPUS_PER_NODE = 2
REQUEUE_S = 15
"""How long a requeued job waits: SLURM waits until the job's old credential has expired, after 120 s by default."""
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}

# Short intervals everywhere: with SLURM's own defaults a job of a second takes ten.
SLURM_CONF = """\
ClusterName=ringmark
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire={requeue_s}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SwitchType=switch/none
ReturnToService=2
KillWait=15
SlurmctldTimeout=30
SlurmdTimeout=60
GresTypes=gpu
NodeName=n1 NodeHostname={host} Port={ports[1]} CPUs=2 RealMemory=1000 Gres=gpu:{gpus} Features=fast,cpu State=UNKNOWN
NodeName=n2 NodeHostname={host} Port={ports[2]} CPUs=2 RealMemory=1000 Gres=gpu:{gpus} Features=fast,cpu State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES DefaultTime=1 MaxTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL DefaultTime=1 MaxTime=10 State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes SLURM's programs talk to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *argv: str) -> str:
        """Standard output of one of SLURM's programs; raises with its words if it fails."""
        result = subprocess.run(argv, env=os.environ | self.environment, capture_output=True, text=True, timeout=30)
        if result.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {result.stderr.strip()}")
        return result.stdout

    def show_job(self, job_id: str) -> dict[str, str]:
        """Fields of `scontrol show job`, such as JobState and ExitCode; values with spaces lose what follows them."""
        words = self.command("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job_id: str, timeout_s: float) -> dict[str, str]:
        """Fields of a job that has ended. Polls, since `sbatch --wait` looks only every 2 to 32 s."""
        deadline = time.monotonic() + timeout_s
        while (job := self.show_job(job_id))["JobState"] not in FINAL_STATES:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job_id} is {job['JobState']} ({job['Reason']}) after {timeout_s} s")
            time.sleep(0.2)
        return job

    def cancel_all(self, timeout_s: float = 20) -> None:
        """End every job, and wait until the nodes have cleaned up after it."""
        deadline = time.monotonic() + timeout_s
        while self.command("squeue", "--noheader") and time.monotonic() < deadline:
            self.command("scancel", "--quiet", "--user=root")
            time.sleep(0.5)


def missing_reason() -> str | None:
    """Why no cluster can be started here, or None."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"a SLURM test needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a SLURM test needs root: slurmd starts jobs as their owners"
    return None


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster whose nodes are idle; everything it started is gone afterwards, also after an error."""
    # Not pytest's tmp_path: slurmstepd's sockets live here, and their paths must stay under 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ringmark-slurm-"))
    cluster = Cluster(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(sweep, cluster)
        write_files(folder)
        # --force: munged wants its socket's folder to be open to other users; there are none.
        files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
        start(stack, cluster, ["munged", "--foreground", "--force", "--num-threads=4", *options])
        # slurmctld that starts before munged's socket is there gives up on its nodes for a long time.
        wait_until(lambda: (folder / "munge.sock").exists(), cluster, "munged to open its socket")
        start(stack, cluster, ["slurmctld", "-D", "-i"])
        for node in NODES:
            start(stack, cluster, ["slurmd", "-N", node, "-D"])
        wait_until(lambda: idle_nodes(cluster) == set(NODES), cluster, "both nodes to be idle")
        stack.callback(cluster.cancel_all)
        yield cluster


def write_files(folder: Path) -> None:
    """Configuration, munge key and two stand-ins for GPUs."""
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    for index in range(GPUS_PER_NODE):
        # slurmd wants devices; those of /dev/null lead nowhere. With plain files CUDA_VISIBLE_DEVICES stays unset.
        os.mknod(folder / f"gpu{index}", mode=0o020600, device=os.makedev(1, 3))
    files = f"{folder}/gpu[0-{GPUS_PER_NODE - 1}]"
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={files}\n")
    values = {"host": socket.gethostname(), "ports": free_ports(3), "folder": folder, "gpus": GPUS_PER_NODE}
    values["requeue_s"] = REQUEUE_S
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**values))


def start(stack: ExitStack, cluster: Cluster, argv: list[str]) -> None:
    """Start a daemon in the foreground, to be ended with the stack."""
    environment = os.environ | cluster.environment
    with (cluster.folder / "daemons.err").open("ab") as log:
        daemon = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(stop, daemon)


def stop(daemon: subprocess.Popen[bytes]) -> None:
    """End a daemon by its own process id; a slurmd that never met its controller ignores SIGTERM."""
    daemon.terminate()
    try:
        daemon.wait(timeout=5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def idle_nodes(cluster: Cluster) -> set[str]:
    """Names of the nodes that can take a job."""
    try:
        lines = cluster.command("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
    except RuntimeError:
        return set()
    return {line.split()[0] for line in lines if line.split()[1] == "idle"}


def wait_until(condition: Callable[[], bool], cluster: Cluster, what: str, timeout_s: float = 30) -> None:
    """Poll a condition; raises TimeoutError with the daemons' last words."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            logs = [cluster.folder / "daemons.err", *sorted(cluster.folder.glob("*.log"))]
            words = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in logs if log.exists())
            raise TimeoutError(f"waited {timeout_s} s for {what}\n{words}")
        time.sleep(0.05)


def sweep(cluster: Cluster) -> None:
    """Kill what outlived its job or its daemon: the processes whose environment names this very cluster."""
    mark = f"SLURM_CONF={cluster.environment['SLURM_CONF']}".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # It ended meanwhile, or it is another user's.
