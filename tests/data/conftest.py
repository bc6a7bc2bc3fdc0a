"""The tests of images read TIFF too."""

import pytest

from vitcifar.data.image import MORE_FORMATS


@pytest.fixture(autouse=True)
def tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MORE_FORMATS, "TIFF")
