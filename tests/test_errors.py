"""The tree of errors."""

import re

from vitcifar import errors


def subclasses(root: type, depth: int = 0) -> list[tuple[str, int]]:
    own = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [(root.__name__, depth), *(entry for kind in own for entry in subclasses(kind, depth + 1))]


def test_the_drawn_tree_is_the_tree_of_classes():
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│ ]*)(?:[├└]── )?(\w+Error)\b", line):
            depth = 0 if match[2] == "VitCifarError" else 1 + len(match[1]) // 4
            drawn.append((match[2], depth))
    assert drawn == subclasses(errors.VitCifarError)
