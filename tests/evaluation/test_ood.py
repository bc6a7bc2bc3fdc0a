"""Out-of-distribution images."""

import pytest

from vitcifar.config import TrainConfig, resolve
from vitcifar.errors import ConfigError, DataError
from vitcifar.evaluation import ood
from vitcifar.evaluation.ood import check_ood


def test_ood_images_are_checked_without_loading_an_archive(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("an archive was loaded")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"not read")
    monkeypatch.setattr(ood, "open_source", never)
    check_ood(resolve("digits", ood="cifar10"))
    check_ood(TrainConfig(analysis="none"))
    with pytest.raises(DataError, match="There is no folder /nowhere"):
        check_ood(resolve("digits", ood="/nowhere"))
    with pytest.raises(ConfigError, match="ood is 'digits'"):
        check_ood(resolve("digits", ood="digits"))
