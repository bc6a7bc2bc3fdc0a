"""Uploads: what a request may name, and what it may not."""

import httpx
import numpy as np
import pytest
from PIL import Image
from support.page import data_url, upload, upload_of
from support.serving import in_chromium
from support.toys import make_image

from vitcifar.errors import ImageError
from vitcifar.serving.app import launch
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


@in_chromium
def test_an_image_larger_than_a_request_is_one_sentence_unless_it_is_a_jpeg_which_is_reduced(
    colours, chromium, tmp_path
):
    """Of `--max-request-mib 2`, base64 leaves 1.25 MiB for an image."""
    noise = np.random.default_rng(0).integers(0, 255, (1600, 1600, 3)).astype(np.uint8)
    Image.fromarray(noise[:800, :800]).save(tmp_path / "noise.png")  # 1.8 MiB, for noise is not compressed
    Image.fromarray(noise).save(tmp_path / "photo.jpg", quality=95)
    assert (tmp_path / "photo.jpg").stat().st_size > 2**21
    running = launch(colours, port=0, max_request=2**21)
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    sent: list[int] = []
    tab.on("request", lambda request: sent.append(len(request.post_data_buffer or b"")))
    tab.goto(running.url)
    tab.wait_for_selector(".card.empty")
    upload(tab, tmp_path / "noise.png")
    tab.wait_for_selector(".picker-note:visible")
    sentence = "noise.png has 2 MiB, more than 1.25: choose a smaller image, or save it as JPEG."
    assert tab.inner_text(".picker-note") == sentence
    assert tab.is_visible(".card.empty"), "as before"
    upload(tab, tmp_path / "photo.jpg")
    tab.wait_for_selector("#card:not(.busy) .card.prediction")
    assert not tab.is_visible(".picker-note")
    tab.get_by_role("tab", name="Batch").click()
    assert "each of at most 1.25 MiB" in tab.inner_text("#batch")
    tab.set_input_files("#batch input", str(tmp_path / "noise.png"))
    tab.wait_for_selector("#batch tbody tr:has-text('noise.png is 2 MiB, the limit is 1.25 MiB: save a smaller image')")
    assert max(sent) < 2**21, "what the server would refuse is not sent"
    tab.close()
    running.close()
