"""Every path of a run may have spaces, percent signs, hashes and letters of any script."""

import pytest
from PIL import Image
from support.commands import PLAIN, options, vitcifar
from support.training import CLASSES, shades


def write_images(folder):
    """A folder of images: 25 for training and 5 for testing of each of three classes."""
    for part, dataset in (("train", shades(25)), ("test", shades(5, seed=1))):
        for index, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            path = folder / part / f"{CLASSES[label]} ü #%" / f"{index} é#%.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


@pytest.mark.slow
def test_a_run_and_its_version_work_with_any_letters_in_every_path(tmp_path):
    place = tmp_path / "50% of #1 übung 猫 it's"
    images, temporary, here = (place / name for name in ("images #%", "tmp é#", "here ü"))
    temporary.mkdir(parents=True)
    here.mkdir()
    write_images(images)
    settings = {**PLAIN, "data": "folder", "data_dir": str(images), "output_dir": str(place / "out # % ü")}
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/store # % ü.db",
        "VITCIFAR_CACHE": str(place / "cache # % ü"),
        "TMPDIR": str(temporary),
    }

    def run(*words):
        done = vitcifar(here, *words, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    words = run("train", *options(settings)).split()
    run("compare-logs", words[words.index("run") + 1])
    assert "ü #%" in run("predict", "--version", "1", str(next((images / "test").rglob("*.png"))))
    run("doctor")
    assert [path.name for path in tmp_path.iterdir()] == [place.name], "nothing lies beside it"
    assert [path.name for path in here.iterdir()] == ["mlruns"], "MLflow puts artifacts where its store was made"
    assert not [path for path in temporary.iterdir() if path.name.startswith(("vitcifar", "pulled"))]
