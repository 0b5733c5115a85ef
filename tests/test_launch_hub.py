"""The head and its members: what they tell each other, who is lost and why, and who is not let in."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from launch.hub import Hub
from launch.link import Link
from launch.wire import LONGEST_LINE_BYTES, Limits
from tests.link_member import GONE, NAMES, ROOT, TOKEN, Events, hub, killed, member, nothing_left, read_line


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    with nothing_left():
        yield


def test_events_go_both_ways_in_order_and_whole() -> None:
    text = "ü\n\x1b" * 50_000
    with hub() as (head, events):
        link = Link(head.endpoints, TOKEN, "n2", heard := Events())
        for number in range(1000):
            assert link.send("count", number)
        assert [events.wait_for("count") for _ in range(1000)] == [("n2", "count", number) for number in range(1000)]
        link.send("text", text)
        assert events.wait_for("text") == ("n2", "text", text)
        assert (head.send("n2", "go", [1, None]), head.send("n1", "go")) == (True, False)
        assert heard.wait_for("go") == ("go", [1, None])
        assert head.broadcast("stop", {"reason": "x"}) == ("n2",) == head.present
        assert heard.wait_for("stop") == ("stop", {"reason": "x"})
        link.send("last", 1)
        link.stop()
        assert events.wait_for("last") == ("n2", "last", 1)
        assert events.wait_for("bye") == ("n2", "bye", {})
        assert not link.send("late")


def test_an_event_right_after_the_welcome_is_not_lost() -> None:
    heard, heads = Events(), []

    def greet(name: str, kind: str, data: Any) -> None:
        if kind == "joined":
            heads[0].send(name, "early", data["pid"])

    with Hub(TOKEN, NAMES, greet) as head:
        heads.append(head)
        with Link(head.endpoints, TOKEN, "n1", heard):
            assert heard.wait_for("early") == ("early", os.getpid())


def test_the_end_of_the_head_is_a_goodbye() -> None:
    with hub() as (head, _), Link(head.endpoints, TOKEN, "n1", heard := Events()) as link:
        head.broadcast("verdict", 7)
        head.stop()
        assert heard.wait_for("verdict") == ("verdict", 7)
        assert heard.wait_for("bye") == ("bye", {})
        assert not link.send("late")
        with pytest.raises(ValueError, match="the head of the launch was lost while n1 joined: it has ended"):
            link.join(slots=1)


def test_the_head_knows_who_came() -> None:
    with hub() as (head, events), killed(process := member(head, "n2")):
        name, _, data = events.wait_for("joined")
        assert (name, data["host"], data["pid"]) == ("n2", socket.gethostname(), process.pid)
        assert abs(data["time_s"] - time.time()) < 10
        assert events.wait_for("hello") == ("n2", "hello", {"from": "n2"})


def test_a_killed_member_is_lost_at_once() -> None:
    with hub() as (head, events), killed(process := member(head, "n2")):
        events.wait_for("hello")
        os.kill(process.pid, signal.SIGKILL)
        assert events.wait_for("lost") in [("n2", "lost", {"reason": reason}) for reason in GONE]
        assert head.present == ()


def test_a_stopped_member_is_lost_after_silence_and_learns_of_it() -> None:
    with hub(lost_after_s=5) as (head, events), killed(process := member(head, "n2")):
        events.wait_for("hello")
        os.kill(process.pid, signal.SIGSTOP)
        start = time.monotonic()
        assert events.wait_for("lost", timeout_s=20) == ("n2", "lost", {"reason": "no word for 5 s"})
        assert 3 < time.monotonic() - start < 20
        os.kill(process.pid, signal.SIGCONT)
        assert read_line(process)[0] == "lost"


def test_quiet_members_are_not_lost() -> None:
    with hub(lost_after_s=5) as (head, events), Link(head.endpoints, TOKEN, "n1", heard := Events()):
        time.sleep(6)
        assert head.present == ("n1",)
        assert heard.queue.empty()
        assert [event[1] for event in events.queue.queue] == ["joined"]


def test_a_stopped_head_is_lost_for_its_members() -> None:
    argv = [sys.executable, "-m", "tests.link_member", TOKEN, "--head", "2", "n1", "n2"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with killed(process), Link(read_line(process), TOKEN, "n1", heard := Events()) as link:
        os.kill(process.pid, signal.SIGSTOP)
        assert heard.wait_for("lost", timeout_s=20) == ("lost", {"reason": "no word for 2 s"})
        assert not link.send("late")


def test_the_clock_of_the_head_is_known() -> None:
    with hub() as (head, _), Link(head.endpoints, TOKEN, "n1", Events()) as link:
        assert abs(link.head_time_s() - time.time()) < 0.5
        assert abs(link.clock_offset_s) < 0.5
        time.sleep(0.1)
        assert abs(link.head_time_s() - time.time()) < 0.5


def test_a_head_with_another_clock_is_followed() -> None:
    code = (
        "import sys, time; import launch.hub as h; real = time.time; time.time = lambda: real() + 3600;"
        f"hub = h.Hub({TOKEN!r}, ['n1'], print); sys.stdout.write(hub.endpoints[0] + chr(10)); sys.stdout.flush();"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with killed(process):
        assert process.stdout is not None
        with Link([process.stdout.readline().strip()], TOKEN, "n1", Events()) as link:
            assert abs(link.clock_offset_s - 3600) < 0.5


def read_all(connection: socket.socket, timeout_s: float = 20) -> bytes:
    """Until the other side closes."""
    connection.settimeout(timeout_s)
    found = b""
    try:
        while chunk := connection.recv(65536):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def visitor(head: Hub) -> socket.socket:
    host, _, port = head.endpoints[-1].rpartition(":")
    return socket.create_connection((host, int(port)))


def test_garbage_is_shown_out_and_nobody_else_notices() -> None:
    words = [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 5000, b"[]\n", b'["_hello", {}]\n', b'["_join", {"round": 0}]\n']
    words += [b"{" * 4000, b"[" * 4000 + b"\n"]
    words.append(b'["_hello", {"member": "n2", "proof": "\xc3\xbc", "nonce": "", "host": "", "pid": 1, "time_s": 1}]\n')
    with hub() as (head, events), Link(head.endpoints, TOKEN, "n1", Events()) as link:
        for word in words:
            with visitor(head) as connection:
                connection.sendall(word)
                if not word.endswith(b"\n"):
                    connection.shutdown(socket.SHUT_WR)
                assert read_all(connection).count(b"\n") == 1, word  # the greeting, and no answer
        assert link.send("still", "here")
        assert events.wait_for("still") == ("n1", "still", "here")
        assert [event[1] for event in events.seen] == ["joined", "still"]


def test_who_says_nothing_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.hub.GREETING_S", 4)
    monkeypatch.setattr("launch.hub.MOST_GUESTS", 3)
    with hub() as (head, _):
        connections = [visitor(head) for _ in range(5)]
        assert [read_all(each).count(b"\n") for each in connections] == [1, 1, 1, 0, 0]
        for each in connections:
            each.close()


def test_a_wrong_token_is_told_nothing() -> None:
    with hub() as (head, events):
        with pytest.raises(ValueError, match=r"n1 cannot reach the head .*: connection closed \(is it the head of"):
            Link(head.endpoints, "another token", "n1", Events(), timeout_s=0.4)
        assert events.queue.empty()


def test_a_head_that_does_not_know_the_token_is_not_believed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while not over.is_set():  # it is tried again and again
                with suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b'["_greeting", {"nonce": "x"}]\n')
                        connection.recv(65536)
                        connection.sendall(b'["_welcome", {"proof": "x", "members": ["n1"], "lost_after_s": 9}]\n')
                        connection.recv(65536)

        over = threading.Event()
        server.settimeout(0.1)
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ValueError, match="it is not the head of this launch"):
            Link([f"127.0.0.1:{server.getsockname()[1]}"], TOKEN, "n1", Events(), timeout_s=3)
        over.set()
        thread.join()


def test_a_member_that_is_here_already_or_is_unknown_is_refused_at_once() -> None:
    with hub() as (head, _), Link(head.endpoints, TOKEN, "n1", Events()):
        with pytest.raises(ValueError, match="refused n1: n1 is connected already"):
            Link(head.endpoints, TOKEN, "n1", Events())
        with pytest.raises(ValueError, match="refused n9: n9 is none of n1, n2, n3"):
            Link(head.endpoints, TOKEN, "n9", Events())
        assert head.present == ("n1",)


def test_a_member_may_come_back() -> None:
    with hub() as (head, events):
        for _ in range(2):
            with Link(head.endpoints, TOKEN, "n1", Events()) as link:
                link.send("here")
                assert events.wait_for("here")
            assert events.wait_for("bye")


def test_a_line_that_is_too_long_ends_a_connection_and_is_not_sent() -> None:
    with hub() as (head, events), Link(head.endpoints, TOKEN, "n1", heard := Events()) as link:
        with pytest.raises(ValueError, match="expected 'big' of at most 1048576 bytes, got"):
            link.send("big", "x" * LONGEST_LINE_BYTES)
        link.send("fits", "x" * (LONGEST_LINE_BYTES - 13))
        assert len(events.wait_for("fits")[2]) == LONGEST_LINE_BYTES - 13
        link._wire._posted.append(b"x" * (LONGEST_LINE_BYTES + 1))
        reason = f"a line of more than {LONGEST_LINE_BYTES} bytes came"
        assert events.wait_for("lost") == ("n1", "lost", {"reason": reason})
        assert heard.wait_for("lost")


@pytest.mark.parametrize("kind", ["_join", "lost", "bye"])
def test_events_of_the_link_itself_cannot_be_sent(kind: str) -> None:
    with hub() as (head, _), Link(head.endpoints, TOKEN, "n1", Events()) as link:
        for send in (link.send, head.broadcast):
            with pytest.raises(ValueError, match="not the link's own"):
                send(kind)
        with pytest.raises(ValueError, match="can be written as JSON"):
            link.send("thing", object())


def test_an_exception_of_a_callback_is_printed_and_kept(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*event: Any) -> None:
        if "boom" in event:
            raise RuntimeError(f"cannot take {event[-1]}")

    with Hub(TOKEN, NAMES, fail) as head, Link(head.endpoints, TOKEN, "n1", fail) as link:
        link.send("boom", 1)
        head.broadcast("boom", 2)
        deadline = time.monotonic() + 5
        while (head.failure is None or link.failure is None) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert head.present == ("n1",)
    assert (str(head.failure), str(link.failure)) == ("cannot take 1", "cannot take 2")
    printed = capfd.readouterr().err
    assert "RuntimeError: cannot take 1" in printed
    assert "RuntimeError: cannot take 2" in printed


def test_stop_is_quick_and_may_be_called_from_a_callback_and_twice() -> None:
    heads: list[Hub] = []
    head = Hub(TOKEN, NAMES, lambda *event: heads[0].stop() if event[1] == "end" else None)
    heads.append(head)
    with Link(head.endpoints, TOKEN, "n1", heard := Events()) as link:
        start = time.monotonic()
        link.send("end")
        assert heard.wait_for("bye")
    head.stop()
    link.stop()
    assert time.monotonic() - start < 5


def test_stop_does_not_wait_for_a_member_that_reads_nothing() -> None:
    with hub() as (head, events), killed(process := member(head, "n2")):
        events.wait_for("hello")
        os.kill(process.pid, signal.SIGSTOP)
        for _ in range(30):
            head.send("n2", "big", "x" * 1_000_000)
        start = time.monotonic()
        head.stop()
        assert time.monotonic() - start < 5


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected lost_after_s of 2 or more"):
        Limits(lost_after_s=1)
    with pytest.raises(ValueError, match="expected a token and different names"):
        Hub(TOKEN, ["n1", "n1"], print)
