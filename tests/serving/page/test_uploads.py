"""Uploads: what a request may name, and what it may not."""

import httpx
import pytest
from support.page import data_url, upload_of
from support.toys import make_image

from vitcifar.errors import ImageError
from vitcifar.serving.model_pool import ModelPool
from vitcifar.serving.page import gradio_setup, uploads


def test_an_image_inside_the_request_is_classified(colours):
    pool = ModelPool(colours, "champion")
    prediction, model = uploads.predict_upload(pool, upload_of(url=data_url(make_image("green"))), "2")
    assert prediction is not None and prediction.label == "green" and model.version == 2
    with pytest.raises(ImageError, match=r"^cat\.png is not base64"):
        uploads.predict_upload(pool, upload_of(url="data:image/png;base64,@@", orig_name="cat.png"), "")


def test_only_files_in_the_folder_of_the_page_are_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(make_image())
    uploaded = gradio_setup.private_folder() / "red.png"
    uploaded.write_bytes(make_image())
    link = gradio_setup.private_folder() / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    assert uploads.read_upload(upload_of(path=str(uploaded)), "red.png") == uploaded
    for path in (tmp_path / "secret.png", link, gradio_setup.private_folder() / ".." / "secret.png", "", None):
        with pytest.raises(ImageError, match=r"^red\.png was not uploaded"):
            uploads.read_upload(upload_of(path=path and str(path)), "red.png")


@pytest.mark.parametrize("limit", ["MAX_UPLOADS", "MAX_UPLOAD_BYTES"])
def test_uploads_that_fill_their_folder_are_refused_and_predictions_go_on(page, monkeypatch, limit):
    content = make_image()
    monkeypatch.setattr(uploads, limit, 1)
    folder = gradio_setup.private_folder() / "uploads"
    folder.mkdir(exist_ok=True)
    (folder / "kept.png").write_bytes(content)
    before = sorted(folder.rglob("*"))
    refused = httpx.post(f"{page.url}/gradio_api/upload", files={"files": content}, trust_env=False, timeout=20)
    assert refused.status_code == 503 and "as many uploads as it has room for" in refused.json()["detail"]
    assert sorted(folder.rglob("*")) == before
    answer = httpx.post(f"{page.url}/v1/predict", files={"image": content}, trust_env=False, timeout=20)
    assert answer.status_code == 200
    monkeypatch.undo()
    accepted = httpx.post(f"{page.url}/gradio_api/upload", files={"files": content}, trust_env=False, timeout=20)
    assert accepted.status_code == 200
