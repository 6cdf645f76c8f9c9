"""QPU definitions: qrmi_config.json."""

from __future__ import annotations

import json

import pytest

from qrmi_workflows.config.qpus import (
    QPUDefinition,
    find_config,
    load_dynamic,
    load_qpus,
    select_qpu,
)
from qrmi_workflows.errors import ConfigError, UnknownQPUError


def test_definitions_are_read_by_name_without_credentials_in_their_repr(tmp_path):
    entry = {"name": "a-1.b", "type": "pasqal-cloud", "environment": {"K": "secret"}}
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps({"resources": [entry]}))

    definitions = load_qpus(path)

    assert definitions["a-1.b"].environment == {"K": "secret"}
    assert "secret" not in repr(definitions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "`resources` is missing or not a list"),
        ('{"resources": {}}', "`resources` is missing or not a list"),
        ('{"resources": ["x"]}', "resources[0]: has type str"),
        ('{"resources": [{"type": "t"}]}', "`name` is missing or not a string"),
        ('{"resources": [{"name": "a", "type": 1}]}', "`type` is missing or not a string"),
        ('{"resources": [{"name": "a b", "type": "t"}]}', "invalid QPU name 'a b'"),
        (
            '{"resources": [{"name": "a", "type": "t", "environment": {"K": 1}}]}',
            "resources[0] (a): `environment` must map strings to strings",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(tmp_path, text, message):
    path = tmp_path / "qrmi_config.json"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_qpus(path)

    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_the_message_about_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match=r"qpu sandbox up.*qpu sandbox env"):
        load_qpus(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"\$QPU_CONFIG is not set"):
        find_config({"XDG_CONFIG_HOME": str(tmp_path)})


def test_a_name_may_be_omitted_if_the_file_defines_one_qpu(tmp_path):
    one = QPUDefinition(name="a", type="t", environment={})
    two = QPUDefinition(name="b", type="t", environment={})

    assert select_qpu(None, {"a": one}, tmp_path) is one
    with pytest.raises(ConfigError, match=r"defines 2: a, b\. Name one: `--qpu NAME`"):
        select_qpu(None, {"a": one, "b": two}, tmp_path)
    with pytest.raises(UnknownQPUError, match="must be one of: a"):
        select_qpu("z", {"a": one}, tmp_path)


def test_an_entry_that_stands_for_an_account_is_no_qpu(tmp_path):
    """QRMI marks it with `is_dynamic`, and finds the QPUs of the account."""
    path = tmp_path / "qrmi_config.json"
    entries = [{"name": "a", "type": "t"}, {"name": "all", "type": "t", "is_dynamic": True}]
    path.write_text(json.dumps({"resources": entries}))

    assert list(load_qpus(path)) == ["a"]
    assert list(load_dynamic(path)) == ["all"]
    path.write_text(json.dumps({"resources": [{"name": "a", "type": "t", "is_dynamic": "yes"}]}))
    with pytest.raises(ConfigError, match=r"is_dynamic = 'yes': must be true or false"):
        load_qpus(path)
