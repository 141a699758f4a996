"""What programs may ask the page for, asked as they would."""

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def test_only_what_is_meant_to_be_is_public_and_it_is_typed_and_documented(client):
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert set(told) == {"/list_models", "/list_adapters", "/generate"}
    generate = told["/generate"]
    assert "go on from a prompt" in generate["description"]
    types = {one["parameter_name"]: one["python_type"]["type"] for one in generate["parameters"]}
    assert types["prompt"] == "str"
    assert types["strength"] == "float"


def test_the_answers_of_both_models_with_and_without_the_adapter_are_given(client):
    source, target, *_ = client.predict(api_name="/list_models")
    adapter = client.predict(source, api_name="/list_adapters")[0]
    answers = client.predict(source, target, adapter, "Once", max_tokens=4, api_name="/generate")
    assert set(answers) == {"source", "source_adapter", "target", "target_adapter"}
    assert answers["source"] != answers["source_adapter"]


def test_trouble_is_told_in_a_sentence(client):
    with pytest.raises(AppError, match="Choose a source"):
        client.predict("", "pocket:llama", "pocket:llama/mood", "Once", api_name="/generate")
