"""A command within limits of time and memory, whatever it does against them."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from analyzer.survey.work.limits import GIVEN_UP, MEMORY, TIME, Limits, memory_of, run_within

STUBBORN = "import signal, time; [signal.signal(s, signal.SIG_IGN) for s in (2, 15)]; time.sleep(60)"
SLEEPS = "import time; time.sleep(60)"
HOLDS = f"import sys, time; time.sleep(1); held = b'1' * int(sys.argv[1]); {SLEEPS}"
BEGINS = "import os, subprocess, sys, time; "
BEGINS += f"begun = subprocess.Popen([sys.executable, '-c', {HOLDS!r}, sys.argv[2]], start_new_session=True); "
BEGINS += "open(sys.argv[1], 'w').write(str(begun.pid)); time.sleep(0.8)"


def is_over(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # which nobody has waited for
    except psutil.NoSuchProcess:
        return True


def run(script, *arguments, memory=None, seconds=None, message=b"", stopped=None, beat=lambda: None):
    return run_within(
        [sys.executable, "-c", script, *map(str, arguments)],
        message,
        Limits(memory, seconds),
        environment=os.environ,
        stopped=stopped or threading.Event(),
        beat=beat,
    )


def test_its_status_and_what_it_was_told():
    assert run("import sys; sys.exit(int(sys.stdin.readline()))", message=b"7\n") == 7
    assert run("import os; os.kill(os.getpid(), 11)") == -11


def test_time_that_is_used_up():
    began = time.monotonic()
    assert run(STUBBORN, seconds=0.5) == TIME
    assert time.monotonic() - began < 10


def test_memory_that_a_process_below_it_takes_is_used_up(tmp_path):
    eater = f"import time; open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid())); "
    eater += "x = bytearray(b'1') * 300_000_000; time.sleep(60)"
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {eater!r}], start_new_session=True)"
    assert run(starter, memory=200_000_000) == MEMORY
    assert is_over(int((tmp_path / "pid").read_text()))  # it was taken along, out of a session of its own


@pytest.mark.parametrize(
    ("script", "memory", "expected"),
    [
        (f"{BEGINS}; os.kill(os.getpid(), 9)", None, -9),
        (f"{BEGINS}; sys.exit(5)", None, 5),
        # Who began it is no more when it takes its memory.
        (
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BEGINS!r}, *sys.argv[1:]]); {SLEEPS}",
            10**8,
            MEMORY,
        ),
    ],
)
def test_what_was_begun_in_a_session_of_its_own_ends_too(tmp_path, script, memory, expected):
    assert run(script, tmp_path / "pid", memory or 0, memory=memory) == expected
    assert is_over(int((tmp_path / "pid").read_text()))


def test_a_file_that_is_mapped_is_no_memory(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(300_000_000))
    script = "import mmap, sys, time; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); "
    script += "print(sum(m[:: 4096]), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        held, resident = memory_of([psutil.Process(process.pid)]), psutil.Process(process.pid).memory_info().rss
        process.kill()
    assert held < 100_000_000
    assert resident > 300_000_000


def test_it_is_given_up_when_all_is():
    stopped, beats = threading.Event(), []

    def beat():
        beats.append(1)
        if len(beats) == 3:
            stopped.set()

    assert run(STUBBORN, stopped=stopped, beat=beat) == GIVEN_UP
    assert len(beats) == 3
