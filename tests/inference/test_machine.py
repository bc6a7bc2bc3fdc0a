"""Memory that a process no longer needs goes back to the operating system."""

import platform
import subprocess
import sys

import pytest

# Blocks of 64 KiB, all freed but the last: below it, glibc keeps them.
PROGRAM = """
import ctypes, psutil
from vitcifar.inference.machine import return_free_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(65536) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 65536)
for block in blocks[:-1]:
    libc.free(block)
memory = psutil.Process().memory_info
before = memory().rss
return_free_memory()
print((before - memory().rss) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_free_memory_goes_back_to_the_operating_system():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(result.stdout) > 100  # MB, of the 125 that were freed
