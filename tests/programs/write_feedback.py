"""Writes feedback to a store from three processes that start at once: argv = URL; prints how each of them ended.

They are forked before any of them opens the store, so one start serves all.
"""

import os
import sys

import numpy as np

from vitcifar.serving.feedback import Entry, FeedbackStore

RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def entry(number: int) -> Entry:
    given = {"version": 1, "release_digest": "d1", "label": "red", "probability": 0.9, "source": "rest"}
    return Entry(image_hash=f"{number:064}", model="colours", truth="red", **given)


def write(url: str, first: int) -> None:
    store = FeedbackStore(url)
    for number in range(first, first + 30):
        store.add(entry(number), RED)
        store.add(entry(1_000), RED)  # by every process


def main(url: str) -> None:
    start, starter = os.pipe()
    children = []
    for first in (0, 30, 60):
        if not (child := os.fork()):
            code = 1
            try:
                os.close(starter)
                os.read(start, 1)  # ends when the parent has closed it
                write(url, first)
                code = 0
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(child)
    os.close(starter)
    for child in children:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


main(sys.argv[1])
