"""Bars and lines on a real terminal of 80 columns."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from support.project import ROOT

CODE = """
import time
from vitcifar.progress import bar, notify
for number in bar(range(4), "Reading train", "images", delay=0, mininterval=0):
    time.sleep(0.05)
notify("Epoch 1: val acc 0.973")
"""


def on_terminal(code: str, columns: int) -> str:
    """What a program writes to a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(theirs)
    written = b""
    while True:
        try:
            written += os.read(ours, 4096)
        except OSError:  # the program has ended
            break
    assert child.wait() == 0
    return written.decode()


def test_a_bar_fits_the_terminal_and_vanishes_and_a_line_stays():
    written = on_terminal(CODE, 80)
    drawn = [part for part in written.split("\r") if "Reading train" in part]
    assert len(drawn) >= 4 and all(60 < len(part) <= 80 and "█" in part for part in drawn[1:])
    assert "2/4" in written and "images/s" in written
    blank, line, end = written.split("\r")[-3:]
    assert (blank.strip(), line, end) == ("", "Epoch 1: val acc 0.973", "\n")  # the bar is overwritten before it


def test_there_is_no_bar_where_nobody_looks():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert done.stderr == "Epoch 1: val acc 0.973\n"
