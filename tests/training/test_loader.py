"""A loader worker that raises, exits, is killed or hangs: one line names the cause, and no process stays behind."""

import os
import signal
import sys
import time

import psutil
import pytest
from support.training import settings, train

from vitcifar.errors import DataError, VitCifarError
from vitcifar.training import batches, loader

SECONDS = 3  # that a worker has for a request, here


def fail(error):
    raise error


FAULTS = {
    "raises": (lambda: fail(ValueError("odd\npixels")), r"failed \(odd pixels\): --num-workers 0 shows where"),
    "raises what a user can fix": (lambda: fail(DataError("cat.png is cut off: restore it.")), "^cat.png is cut off"),
    "has no memory left": (lambda: fail(MemoryError()), r"failed \(MemoryError\)"),
    "exits": (lambda: os._exit(3), "ended with exit code 3"),
    "exits as if all were well": (lambda: sys.exit(0), r"worker (ended|did not answer)"),
    "is killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed \(Killed\): .* or free memory"),
    "crashes": (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"was killed \(Segmentation fault\)"),
    "hangs": (lambda: time.sleep(600), f"did not answer within {SECONDS} s"),
    "is stopped": (lambda: os.kill(os.getpid(), signal.SIGSTOP), f"did not answer within {SECONDS} s"),
}


QUICK = ("raises", "is killed", "hangs")


@pytest.mark.parametrize(
    "fault", [fault if fault in QUICK else pytest.param(fault, marks=pytest.mark.slow) for fault in FAULTS]
)
def test_a_worker_that_fails_is_one_line_in_time_and_leaves_no_process(tmp_path, monkeypatch, fault):
    act, message = FAULTS[fault]
    real = batches.augment

    def augment(image, name, key):
        if key[1:] == (2, 5):  # an image in the second epoch
            act()
        return real(image, name, key)

    monkeypatch.setattr(loader, "TIMEOUT", SECONDS)
    monkeypatch.setattr(batches, "augment", augment)
    before, began = {child.pid for child in psutil.Process().children()}, time.monotonic()
    with pytest.raises(VitCifarError, match=message) as raised:
        train(tmp_path, settings(num_workers=2, augmentation="crop-flip"))
    assert time.monotonic() - began < 30, "most of it is not waiting: other programs may have the cores"
    assert "\n" not in str(raised.value)
    assert not [child for child in psutil.Process().children() if child.pid not in before]
    time.sleep(0.05)  # an error that torch raises about a worker later would be raised here
