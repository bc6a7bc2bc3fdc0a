"""Writes feedback to a store, as one of several processes: argv = URL, first image; it starts when stdin ends."""

import sys

import numpy as np

from vitcifar.serving.feedback import Entry, FeedbackStore

url, first = sys.argv[1], int(sys.argv[2])
red = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def entry(number: int) -> Entry:
    given = {"version": 1, "release_digest": "d1", "label": "red", "probability": 0.9, "source": "rest"}
    return Entry(image_hash=f"{number:064}", model="colours", truth="red", **given)


print("ready", flush=True)
sys.stdin.read()
store = FeedbackStore(url)
for number in range(first, first + 30):
    store.add(entry(number), red)
    store.add(entry(1_000), red)  # by every process
