"""Takes every system call but a few away from a process that works on what strangers send (Linux's seccomp)."""

import contextlib
import ctypes
import platform
import struct
import sys

# Linux's numbers on x86-64 of what decoding needs: pipes that are open, memory, time, and the end. Not: open a file or
# a socket, start a program or a thread, signal or trace another process.
ALLOWED = {
    **{"read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11},
    **{"brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sched_yield": 24, "mremap": 25},
    **{"madvise": 28, "getpid": 39, "exit": 60, "gettid": 186, "futex": 202, "clock_gettime": 228, "exit_group": 231},
    **{"getrandom": 318},
}
AUDIT_ARCH_X86_64 = 0xC000003E
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RETURN_ALLOW, RETURN_EPERM = 0x7FFF0000, 0x00050001
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of BPF; a load is from the number (0) or the architecture (4)
NUMBER, ARCHITECTURE = 0, 4


class Program(ctypes.Structure):
    """`struct sock_fprog`: how many instructions, and where they are."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_supported() -> bool:
    """Whether this machine has the numbers of `ALLOWED`."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


def refuse_other_calls() -> bool:
    """From now on, every system call but `ALLOWED` fails with EPERM, for good; False where that cannot be had."""
    if not is_supported():
        return False
    numbers = sorted(ALLOWED.values())
    code = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_IF_EQUAL, 0, len(numbers) + 1, AUDIT_ARCH_X86_64), (LOAD, 0, 0, NUMBER)]
    code += [(JUMP_IF_EQUAL, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    code += [(RETURN, 0, 0, RETURN_EPERM), (RETURN, 0, 0, RETURN_ALLOW)]
    instructions = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    program = Program(len(code), instructions)
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            return int(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0)) == 0
    return False
