"""The learning rate of every step, as a function of the step alone: nothing to save, nothing to go out of step."""

import math


def learning_rate(step: int, *, num_steps: int, warmup_steps: int, peak: float, schedule: str) -> float:
    """The learning rate of step 0, 1, ...: it rises to `peak` in `warmup_steps`, then falls towards 0 at `num_steps`.

    Cosine: Loshchilov & Hutter 2017.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)  # 0 ... 1
    return peak * (1 - done) if schedule == "linear" else peak * (1 + math.cos(math.pi * done)) / 2
