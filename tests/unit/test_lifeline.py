"""Signals and open units, in processes of their own with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.pythons import find_python

REPOSITORY = Path(__file__).parents[2]

PRELUDE = """
import os, signal, sys, threading, time
from cloudrun.units.lifeline import LIFELINE

def say(*words):  # whole lines, whichever threads speak
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Unit:
    def __init__(self, name):
        self.name = name
        self.closed = False
        self.interrupted = threading.Event()
    def __enter__(self):
        LIFELINE.add(self)
        return self
    def __exit__(self, *error):
        self.close()
    def interrupt(self):
        say(self.name, "interrupted")
        self.interrupted.set()
    def hurry(self):
        say(self.name, "hurried")
    def wait_for_end(self):
        pass
    def close(self):
        if not self.closed:
            self.closed = True
            say(self.name, "closed")
        LIFELINE.remove(self)

def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.05)
    for thread in threading.enumerate():
        if thread.name == "cloudrun-signal":  # it tells the units
            thread.join()
"""


def run(body: str, python: str = sys.executable) -> tuple[list[str], int]:
    """The lines a process printed, and its exit status."""
    done = subprocess.run(
        [python, "-c", PRELUDE + textwrap.dedent(body)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr.replace('Traceback (most recent call last):\n  File "<string>"', ""), (
        done.stderr
    )
    return done.stdout.splitlines(), done.returncode


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_terminating_signal_unwinds_the_block_and_then_the_process(number: str, status: int) -> None:
    lines, code = run(f"""
        with Unit("a"):
            send(signal.{number})
            say("not reached")
    """)
    assert sorted(lines) == ["a closed", "a interrupted"]
    assert code == status


def test_ctrl_c_stays_a_keyboard_interrupt() -> None:
    lines, code = run("""
        try:
            with Unit("a"):
                send(signal.SIGINT)
        except KeyboardInterrupt:
            say("surfaced")
    """)
    assert sorted(lines) == ["a closed", "a interrupted", "surfaced"]
    assert code == 0


def test_the_callers_handlers_are_put_back() -> None:
    lines, _ = run("""
        mine = lambda number, frame: say("mine", number)
        signal.signal(signal.SIGTERM, mine)
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        with Unit("a"), Unit("b"):
            pass
        assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        send(signal.SIGTERM)
    """)
    assert lines == ["b closed", "a closed", f"mine {signal.SIGTERM}"]


def test_a_handler_of_the_callers_own_is_still_called() -> None:
    lines, code = run("""
        signal.signal(signal.SIGTERM, lambda number, frame: say("mine"))
        with Unit("a") as unit:
            send(signal.SIGTERM)
            unit.interrupted.wait(60)
    """)
    assert sorted(lines) == ["a closed", "a interrupted", "mine"]
    assert code == 0


def test_what_was_ignored_stays_ignored() -> None:
    lines, code = run("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Unit("a"):
            send(signal.SIGHUP)
            say("still here")
    """)
    assert lines == ["still here", "a closed"]
    assert code == 0


def test_units_of_other_threads_are_told_too() -> None:
    lines, code = run("""
        LIFELINE.take_signals()     # what importing cloudrun.units.unit in the main thread does
        opened = threading.Event()
        def work():
            with Unit("worker") as unit:
                opened.set()
                unit.interrupted.wait(60)
        thread = threading.Thread(target=work)
        thread.start()
        opened.wait()
        send(signal.SIGTERM)
        thread.join()
        say("not reached")
    """)
    assert lines == ["worker interrupted", "worker closed"]
    assert code == 143


def test_a_second_signal_hurries_and_does_not_raise() -> None:
    lines, code = run("""
        with Unit("a"):
            try:
                send(signal.SIGINT)
            except KeyboardInterrupt:
                send(signal.SIGINT)
                send(signal.SIGTERM)
                say("rescue went on")
                raise
    """)
    assert sorted(lines) == ["a closed", "a hurried", "a hurried", "a interrupted", "rescue went on"]
    assert lines.index("rescue went on") < lines.index("a closed")
    assert code in (130, -signal.SIGINT)


def test_with_no_unit_open_a_signal_does_what_it_always_did() -> None:
    lines, code = run("""
        LIFELINE.take_signals()
        send(signal.SIGTERM)
        say("not reached")
    """)
    assert lines == []
    assert code == -signal.SIGTERM


def test_a_unit_that_was_never_closed_is_closed_at_exit() -> None:
    assert run('Unit("a").__enter__()') == (["a closed"], 0)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])  # 3.12 starts no thread while it ends
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_while_the_interpreter_ends_leaves_no_unit_open(version: str, number: str) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    lines, _ = run(
        f"""
        class Slow(Unit):
            def close(self):
                send(signal.{number})
                super().close()

        for name in ("a", "b", "c"):
            Slow(name).__enter__()
        """,
        python,
    )
    assert [line for line in lines if line.endswith("closed")] == ["c closed", "b closed", "a closed"]


def test_a_forked_child_leaves_its_parents_units_alone() -> None:
    lines, _ = run("""
        with Unit("a"):
            child = os.fork()
            if child == 0:
                LIFELINE.close_all()
                os._exit(0)
            os.waitpid(child, 0)
            say("child gone")
    """)
    assert lines == ["child gone", "a closed"]


def test_a_signal_during_the_clean_up_comes_after_it() -> None:
    lines, code = run("""
        class Careful(Unit):
            def close(self):
                with LIFELINE.shield():
                    send(signal.SIGTERM)
                    say("cleaned up")
                    super().close()
        try:
            with Careful("a"):
                pass
            say("not reached")
        except SystemExit as error:
            say("then it surfaced")
            raise
    """)
    assert sorted(lines) == ["a closed", "a interrupted", "cleaned up", "then it surfaced"]
    assert lines[-1] == "then it surfaced"
    assert code == 143


def test_a_signal_put_off_by_a_clean_up_that_failed_does_not_come_back_later() -> None:
    lines, code = run("""
        with Unit("a"):
            try:
                with LIFELINE.shield():
                    send(signal.SIGINT)
                    raise ValueError("first cause")
            except ValueError:
                say("first cause")
            with LIFELINE.shield():
                pass
            say("no second one")
    """)
    assert [line for line in lines if "a " not in line] == ["first cause", "no second one"]
    assert code == 0


def test_a_unit_that_cannot_be_ended_keeps_no_other_one_from_being_told() -> None:
    lines, code = run("""
        from cloudrun.core.errors import CleanupIncomplete
        class Stuck(Unit):
            def interrupt(self):
                raise CleanupIncomplete("i-1 stays", next_step="cloudrun reap")
            def close(self):
                super().close()
                raise CleanupIncomplete("i-1 stays", next_step="cloudrun reap")
        Unit("b").__enter__()
        Stuck("a").__enter__()
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            pass
    """)
    assert sorted(lines) == ["a closed", "b closed", "b interrupted"]
    assert code == 0


def test_a_thread_opens_a_unit_after_the_main_thread_has_closed_its_own() -> None:
    lines, code = run("""
        LIFELINE.take_signals()     # what importing cloudrun.units.unit in the main thread does
        with Unit("main"):
            pass
        opened = threading.Event()
        def work():
            with Unit("worker") as unit:
                opened.set()
                unit.interrupted.wait(60)
        thread = threading.Thread(target=work)
        thread.start()
        opened.wait()
        send(signal.SIGTERM)
        thread.join()
    """)
    assert lines == ["main closed", "worker interrupted", "worker closed"]
    assert code == 143


def test_a_thread_that_python_forgot_to_wait_for_ends_its_own_unit() -> None:
    """A signal that interrupts `Thread.join` makes Python take the thread for ended."""
    lines, code = run("""
        class Busy(Unit):
            ended = threading.Event()
            def wait_for_end(self):
                self.ended.wait(60)
            def close(self):
                super().close()
                self.ended.set()
        LIFELINE.take_signals()
        opened = threading.Event()
        def work():
            with Busy("worker") as unit:
                opened.set()
                unit.interrupted.wait(60)
                time.sleep(0.3)
                say("home")
        thread = threading.Thread(target=work)
        thread.start()
        opened.wait()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        thread.join()
    """)
    assert lines[-2:] == ["home", "worker closed"]
    assert code == 143
