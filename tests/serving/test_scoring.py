"""`/invocations` and `/ping`, with MLflow's scoring client too."""

import base64
from urllib.parse import urlsplit

import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from support.toys import make_image

from vitcifar.serving.rest import ImageModel

TEXT = base64.b64encode(make_image("red")).decode()


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [TEXT]},
        {"instances": [TEXT]},
        {"inputs": {"image": [TEXT]}},
        {"dataframe_records": [{"image": TEXT}]},
        {"dataframe_split": {"columns": ["image"], "data": [[TEXT]]}},
        {"inputs": [[[255, 0, 0]]]},
    ],
    ids=lambda body: next(iter(body)),
)
def test_invocations_answer_as_a_loaded_model_does(server, client, body):
    (row,) = client.post("/invocations", json=body).json()["predictions"]
    (expected,) = ImageModel(server.pool.state.current).predict([TEXT])
    assert row | {"probabilities": None} == expected | {"probabilities": None}
    assert row["label"] == "red" and list(row["probabilities"]) == list(expected["probabilities"])


def test_mlflows_own_client_gets_predictions_and_a_ping(server):
    url = urlsplit(server.url)
    client = ScoringServerClient(url.hostname, url.port)
    client.ping()
    predictions = client.invoke(pd.DataFrame({"image": [TEXT, TEXT]})).get_predictions()
    assert list(predictions["label"]) == ["red", "red"] and "confident" in predictions


def test_csv_is_read_and_parquet_is_not(client):
    csv = client.post("/invocations", content=f"image\n{TEXT}\n", headers={"Content-Type": "text/csv"})
    assert csv.json()["predictions"][0]["label"] == "red"
    parquet = client.post("/invocations", content=b"PAR1", headers={"Content-Type": "application/vnd.apache.parquet"})
    assert parquet.status_code == 415


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"inputs": ["not base64!"]}', "The image is not base64"),
        (b'{"any": 1}', "dictionary with input fields"),
        (b"{" + b'"' * 5000, "valid JSON"),
        (b'{"inputs": [' + b'["x"],' * 5000 + b'["x"]]}', "5001 images in the request"),
    ],
)
def test_what_cannot_be_read_is_400_without_a_stack_trace_or_the_whole_request(client, body, sentence):
    response = client.post("/invocations", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert list(response.json()) == ["error_code", "message"]
    assert sentence in response.json()["message"] and len(response.json()["message"]) < 1100
