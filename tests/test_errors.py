"""The tree of errors."""

import re

import pytest

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


def test_a_librarys_text_is_one_line_and_not_cut_before_its_reason():
    advice = "Loading failed.\n\t(1) " + "do this or that, " * 40
    assert errors.reason_of(ValueError(f"{advice}\n\nbecause of x")).endswith("that, because of x")
    assert "\n" not in errors.reason_of(ValueError(advice))
    assert [errors.reason_of(error) for error in (KeyError("a"), EOFError())] == ["KeyError 'a'", "EOFError"]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:SECRET@127.0.0.1:5000", "http://***@127.0.0.1:5000"),
        ("http://SECRET@host/x", "http://***@host/x"),
        ("https://ann:SE/CRET@host", "https://***@host"),
        ("https://ann:SE@CRET@host:1", "https://***@host:1"),
        ("postgresql+psycopg2://ann:SECRET@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("postgresql://db/mlflow?user=ann&password=SECRET&x=1", "postgresql://db/mlflow?user=ann&password=***&x=1"),
        ("https://a@h@h, http://b:SECRET@c:1,x", "https://***@h, http://***@c:1,x"),
        ("https://git.example/a.git?access_token=SECRET", "https://git.example/a.git?access_token=***"),
        ("http://host:5000/#/models/a/versions/1 of ann@host", "http://host:5000/#/models/a/versions/1 of ann@host"),
        ("models:/vitcifar@champion", "models:/vitcifar@champion"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:////home/ann/mlflow.db"),
    ],
)
def test_no_error_shows_the_password_in_an_address(address, shown):
    error = errors.TrackingError(f"The store {address} cannot be used: name another.")
    assert str(error) == f"The store {shown} cannot be used: name another."
