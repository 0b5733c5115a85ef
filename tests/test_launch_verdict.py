"""Who is named, and by which code, from the facts that launchers report; and what the terminal and the file say."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.events import LastWords, NodeFacts, RankEnd, Stack
from launch.verdict import Verdict, judge, read, write
from launch.victims import is_victim, words_in_log

START_S = 1000.0
PAIR = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] "
CLOSED = PAIR + "Connection closed by peer [127.0.0.1]:2465. This is typically caused by a remote worker crashing."
RESET = PAIR + "Read error [127.0.0.1]:2458: Connection reset by peer."
LATE = "[/src/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"
WAITING = ("all_reduce (distributed_c10d.py:4181)", "wrapper (c10d_logger.py:83)", "step (train.py:14)")


def end(rank: int, at_s: float = 10.0, **more: Any) -> RankEnd:
    """A rank on n1 (ranks 0 to 3) or n2 that was gone `at_s` seconds after the start, with exit code 1."""
    facts = {"local_rank": rank % 4, "host": f"n{1 + rank // 4}", "pid": 100 + rank, "code": 1, **more}
    return RankEnd(rank=rank, time_s=START_S + at_s, **facts)


def words(kind: str, message: str, at_s: float = 10.0, *traceback: str) -> LastWords:
    return LastWords(time_s=START_S + at_s, type=kind, message=message, traceback=traceback)


def lost_peer(rank: int, at_s: float = 10.0, **more: Any) -> RankEnd:
    return end(rank, at_s, words=words("RuntimeError", CLOSED, at_s), **more)


def late(rank: int, at_s: float = 10.0, **more: Any) -> RankEnd:
    return end(rank, at_s, words=words("RuntimeError", LATE, at_s), **more)


def stack(rank: int, frames: tuple[str, ...] = WAITING, state: Any = "sleeping") -> Stack:
    return Stack(rank=rank, host=f"n{1 + rank // 4}", frames=frames, state=state)


def verdict_of(*ends: RankEnd, world_size: int | None = None, **facts: Any) -> Verdict:
    """The verdict on these ends; `facts` are those of the node n1."""
    nodes = [NodeFacts(host="n1", node_rank=0, **facts), NodeFacts(host="n2", node_rank=1)]
    return judge(ends, nodes, started_s=START_S, world_size=world_size or len(ends))


def test_a_near_tie_is_decided_by_the_exception_and_not_by_the_process() -> None:
    """Rank 1 takes long to end after its exception; rank 0 reacts 20 ms later, in words of its own, and is gone."""
    first = end(1, 13.0, words=words("ValueError", "bad batch", 10.0), asked=True)
    reaction = end(0, 10.1, words=words("KeyError", "'loss'", 10.02))
    verdict = verdict_of(reaction, first)
    assert (verdict.ranks, verdict.code, verdict.cause) == ((1,), 1, "exception")
    assert verdict.sentence == "rank 1 (n1, local rank 1) failed first, 10.0 s after the start: ValueError: bad batch"
    assert verdict.after_s == 10.0
    assert verdict.ended_s == START_S + 13.0


def test_a_death_by_signal_counts_when_the_process_was_gone() -> None:
    earlier = end(2, 9.9, words=words("ValueError", "x", 9.9))
    killed = end(3, 10.0, code=-signal.SIGSEGV)
    assert verdict_of(killed, lost_peer(0, 9.95), lost_peer(1, 9.95)).ranks == (3,)
    assert verdict_of(killed, earlier).ranks == (2,)
    verdict = verdict_of(killed, end(2, 10.3, words=words("ValueError", "x", 10.2)))
    assert (verdict.ranks, verdict.code, verdict.cause) == ((3,), 139, "signal")
    assert "SIGSEGV" in verdict.sentence


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RuntimeError", CLOSED),
        ("RuntimeError", RESET),
        ("RuntimeError", LATE),
        ("RuntimeError", "Rank 2 successfully reached monitoredBarrier, but received errors from rank 0"),
        ("RuntimeError", "NCCL communicator was aborted on rank 2. Original reason: [Rank 2] Watchdog caught ..."),
        ("DistBackendError", "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error"),
        ("DistBackendError", "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=880) ran"),
        ("DistNetworkError", "failed to recv, got 0 bytes. Connection was likely closed."),
        ("DistStoreError", "wait timeout after 300000ms, keys: /default_pg/0//cpu//0"),
    ],
)
def test_a_rank_that_lost_its_peer_or_waited_in_vain_is_a_victim(kind: str, message: str) -> None:
    assert is_victim(kind, message)
    victim = end(0, 9.0, words=words(kind, message, 9.0))  # the clocks of two hosts are never quite the same
    assert verdict_of(victim, end(1, 10.0, code=-9)).ranks == (1,)
    chain = (f"torch.distributed.{kind}: {message}", "During handling ...", "Failed: the step failed")
    assert is_victim("Failed", "the step failed", chain)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ConnectionResetError", "[Errno 104] Connection reset by peer"),  # of a download, or a loader
        ("RuntimeError", "DataLoader timed out after 30 seconds"),
        ("TimeoutError", "Timed out waiting for the lock"),
        ("DistNetworkError", "The server socket has failed to listen: EADDRINUSE, Address already in use"),
        ("OutOfMemoryError", "CUDA out of memory. NCCL ... timed out after"),
    ],
)
def test_what_only_looks_like_it_is_no_victim(kind: str, message: str) -> None:
    assert not is_victim(kind, message)


def test_the_ranks_own_exit_code_arrives() -> None:
    verdict = verdict_of(end(0, code=42), lost_peer(1))
    assert (verdict.code, verdict.cause, verdict.ranks, verdict.victims) == (42, "exit", (0,), (1,))
    assert verdict.lines == (
        "rank 0 (n1, local rank 0) ended first, 10.0 s after the start: exit code 42",
        "rank 1 was only waiting for it",
    )


def test_ranks_that_the_launcher_had_signalled_say_nothing() -> None:
    asked = end(0, 9.0, code=-signal.SIGTERM, asked=True)
    spoke_late = end(2, 12.0, asked=True, words=words("OSError", "closed", 11.0))
    assert verdict_of(asked, end(1, 10.0, code=3), spoke_late).ranks == (1,)
    assert verdict_of(lost_peer(0), asked, spoke_late, world_size=3).ranks == ()  # it reacted to being ended


def test_memory() -> None:
    killed = verdict_of(end(0, code=-9), lost_peer(1), oom_kills=1)
    assert (killed.code, killed.cause) == (7, "oom")
    assert killed.sentence.endswith("SIGKILL, most likely for memory: the kernel killed 1 process there")
    for facts in ({}, {"oom_kills": 0}):
        killed = verdict_of(end(0, code=-9), lost_peer(1), **facts)
        assert (killed.code, killed.cause) == (137, "signal")
    assert verdict_of(end(4, code=-9), lost_peer(1), oom_kills=1, world_size=8).cause == "signal"  # on another node
    for kind, message in (
        ("OutOfMemoryError", "CUDA out of memory."),
        ("RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        ("MemoryError", ""),
    ):
        verdict = verdict_of(end(0, words=words(kind, message)))
        assert (verdict.code, verdict.cause) == (7, "oom"), kind
    loader = end(0, words=words("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Killed."))
    assert verdict_of(loader, oom_kills=1).cause == "oom"
    assert verdict_of(loader).cause == "exception"


def test_a_rank_that_left_without_finishing_is_the_culprit_of_those_that_lost_it() -> None:
    looked_at = [stack(0, ("_exit_code (rank.py:101)",))]
    for facts in ({}, {"stacks": tuple(looked_at)}):
        verdict = verdict_of(lost_peer(0), end(1, 4.0, code=0), late(2), **facts)
        assert (verdict.code, verdict.cause, verdict.ranks, verdict.victims) == (9, "exit", (1,), (0, 2))
        assert "ended without finishing, exit code 0, 4.0 s after" in verdict.sentence
    finished = verdict_of(lost_peer(0), end(1, 4.0, code=0, finished=True))
    assert "had finished, exit code 0" in finished.sentence
    stuck = verdict_of(end(0, code=0, finished=True), late(1), end(2, code=-9, asked=True), stacks=(stack(2, ()),))
    assert stuck.ranks == (2,)  # one that had finished is not it as long as another may be


def test_ranks_that_raise_the_same_together_are_named_together() -> None:
    raised = [end(rank, words=words("ValueError", "no such key", 10 + rank / 10)) for rank in range(4)]
    apart = end(4, 12.0, words=words("ValueError", "no such key", 11.5))
    verdict = verdict_of(*raised, apart)
    assert verdict.ranks == (0, 1, 2, 3)
    assert verdict.sentence == "ranks 0-3 all raised ValueError: no such key"
    assert verdict_of(end(0, 10.0, code=42), end(1, 10.1, code=42)).ranks == (0,)  # one may follow from the other


def test_a_lost_node_explains_victims_but_not_a_failure_elsewhere() -> None:
    lost = NodeFacts(host="n2", node_rank=1, lost="no answer for 10 s")
    aborted = end(2, code=-signal.SIGABRT)  # NCCL's watchdog, from C++
    verdict = judge([lost_peer(0), late(1), aborted], [lost], started_s=START_S, world_size=8)
    assert (verdict.code, verdict.cause, verdict.host) == (9, "lost node", "n2")
    assert verdict.sentence == "n2 was lost: no answer for 10 s; ranks 3-7 ran there"
    own = judge([lost_peer(0), end(1, code=3)], [lost], started_s=START_S, world_size=8)
    assert own.ranks == (1,)
    assert "n2 was lost as well: no answer for 10 s" in own.lines


def test_the_end_that_everybody_agreed_on() -> None:
    assert verdict_of(end(0, code=0), end(1, code=0)).cause == "done"
    assert verdict_of(end(0, code=0), world_size=2).cause != "done"
    stopped = [end(rank, code=75, asked=True) for rank in range(2)]
    assert (verdict_of(*stopped).code, verdict_of(*stopped).cause) == (75, "stopped")
    for code, cause in ((2, "mistake"), (5, "exit"), (130, "interrupted")):
        told = verdict_of(end(0, code=code), end(1, code=code))
        assert (told.code, told.cause, told.ranks, told.lines) == (code, cause, (0, 1), ())
    for code in (3, 4, 6, 8):
        assert verdict_of(end(0, code=code), lost_peer(1)).code == code


def test_signals_that_ended_the_launcher() -> None:
    killed = [end(0, code=75), end(1, code=-signal.SIGTERM)]  # a scheduler signals the ranks as well
    verdict = verdict_of(*killed, signals=("SIGTERM",))
    assert (verdict.code, verdict.cause, verdict.ranks) == (143, "interrupted", ())
    interrupt = verdict_of(end(0, code=-9, asked=True), end(1, code=130), signals=("SIGINT", "SIGTERM"))
    assert (interrupt.code, interrupt.lines) == (130, ())
    assert verdict_of(end(0, code=75), end(1, code=75), signals=("SIGUSR1",)).code == 75
    assert verdict_of(end(0, code=0), end(1, code=0), signals=("SIGTERM",)).code == 143
    assert verdict_of(end(0, code=0, finished=True), signals=("SIGTERM",)).code == 0
    full = end(1, asked=True, words=words("OSError", "No space left on device"))
    verdict = verdict_of(end(0, code=75, asked=True), full, signals=("SIGUSR1",))
    assert (verdict.code, verdict.cause) == (128 + signal.SIGUSR1, "interrupted")
    assert "rank 1 (n1, local rank 1) failed while it was stopping: OSError: No space left on device" in verdict.lines


def test_a_hang_names_the_odd_one_out() -> None:
    ends = [end(rank, code=-9, asked=True) for rank in range(3)]
    sleeper = stack(1, ("next (loader.py:12)", "step (train.py:9)"))
    verdict = verdict_of(*ends, stacks=(stack(0), sleeper, stack(2)), stalled_s=60.2)
    assert (verdict.code, verdict.cause, verdict.ranks, verdict.host) == (6, "hang", (1,), "n1")
    assert verdict.lines == (
        "nothing moved for 60 s: rank 1 stands in next (loader.py:12), "
        "the other 2 in all_reduce from step (train.py:14)",
        "  next (loader.py:12)",
        "  step (train.py:9)",
    )
    nobody = verdict_of(*ends, stacks=tuple(stack(rank) for rank in range(3)), stalled_s=60.0)
    assert (nobody.code, nobody.ranks) == (6, ())
    left = verdict_of(end(0, 3.0, code=0), *ends[1:], stacks=(stack(1), stack(2)), stalled_s=60.0)
    assert (left.code, left.ranks) == (6, (0,))
    failed = verdict_of(end(0, 3.0, code=4), *ends[1:], stacks=(stack(1), stack(2)), stalled_s=60.0)
    assert (failed.code, failed.ranks) == (4, (0,))


def test_ranks_that_gave_up_waiting_stood_in_the_collective() -> None:
    """They are looked at while they wait to be ended, and two of two places would tell nothing."""
    frame = '  File "/x/torch/distributed/distributed_c10d.py", line 4181, in all_reduce'
    gave_up = end(0, asked=True, words=words("RuntimeError", LATE, 10.0, '  File "t.py", line 3, in step', frame))
    silent = end(1, code=-9, asked=True)
    stacks = (stack(0, ("_exit_code (rank.py:101)",)), stack(1, ("load (t.py:2)",)))
    verdict = verdict_of(gave_up, silent, stacks=stacks)
    assert (verdict.code, verdict.cause, verdict.ranks, verdict.victims) == (6, "hang", (1,), (0,))
    assert verdict.sentence == "rank 1 stands in load (t.py:2), rank 0 in all_reduce from step (t.py:3)"
    without = verdict_of(gave_up, silent)
    assert (without.code, without.cause, without.ranks) == (6, "hang", ())
    assert without.lines[1] == "rank 1 did not say that it waited"


def test_nobody_is_blamed_without_a_reason() -> None:
    cut = verdict_of(lost_peer(0), lost_peer(1))
    assert (cut.code, cut.ranks) == (9, ())
    assert cut.sentence == "ranks 0-1 lost the connection to others, and none was seen to fail before"
    unknown = verdict_of(end(0, code=0), world_size=4)
    assert (unknown.code, unknown.ranks, unknown.after_s) == (9, (), None)
    assert "ranks 1-3" in unknown.sentence


def test_what_the_terminal_is_shown() -> None:
    trace = tuple(f"  line {number}" for number in range(8))
    evil = words("ValueError", "a\x1b[2Jb\r\u202e" + "x" * 500, 10.0, *trace, "\x1b]0;title\x07")
    others = [lost_peer(rank) for rank in (0, 1, 2, 3, 5)]
    verdict = verdict_of(end(4, words=evil, log="/runs/a/logs/rank-4-n2.log"), *others)
    assert len(verdict.lines) == 9
    assert verdict.lines[0].startswith(
        "rank 4 (n2, local rank 0) failed first, 10.0 s after the start: ValueError: a?[2Jb"
    )
    assert max(map(len, verdict.lines)) == 160
    assert not any(
        character in line for line in (*verdict.lines, verdict.sentence) for character in "\x1b\r\x07\u202e\n"
    )
    assert verdict.lines[1:7] == (*trace[3:], "?]0;title?")
    assert verdict.lines[7:] == ("ranks 0-3, 5 were only waiting for it", "log /runs/a/logs/rank-4-n2.log")


def test_a_verdict_survives_its_file(tmp_path: Path) -> None:
    failed = end(0, words=words("ValueError", "x\udcff", 10.0, "  a"), log="/l")
    verdict = verdict_of(failed, lost_peer(1), stacks=(stack(1),), signals=("SIGHUP",), oom_kills=0)
    path = write(verdict, tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(path) == verdict
    assert list(tmp_path.iterdir()) == [path]
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "format": 2}))
    with pytest.raises(ValueError, match=r"format 2; use the ringmark that wrote it"):
        read(path)
    for text in ("{", "[]", "{}", '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"expected a verdict\.json"):
            read(path)


def test_last_words_of_a_rank_that_was_aborted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "x" * 100_000 + "\nterminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [Rank 6] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=880)\n\n"
    )
    found = words_in_log(log, 5.0)
    assert found is not None
    assert (found.type, found.time_s) == ("DistBackendError", 5.0)
    assert is_victim(found.type, found.message)
    log.write_text("all is well\n")
    assert words_in_log(log, 5.0) is None
    assert words_in_log(tmp_path / "none", 5.0) is None


@pytest.mark.parametrize("world_size", [0, None])
def test_a_launcher_that_dies_before_it_has_ranks_is_a_lost_node(world_size: int | None) -> None:
    lost = NodeFacts(host="n1", node_rank=0, lost="its launcher ended without a word")
    verdict = judge([], [lost], started_s=START_S, world_size=world_size)
    assert (verdict.code, verdict.cause, verdict.host) == (9, "lost node", "n1")
