"""qrmi_config.json and the site policy."""

import json
from pathlib import Path

import pytest

from qrmi_workflows.config import folders, qpus
from qrmi_workflows.errors import ConfigError, UnknownQPUError

SITE = """
[defaults]
gres = "qpu:{qpu}"
licence = "qpu_{qpu}"

[qpus.ibm_fez]
lanes = 5

[qpus.FRESNEL]
qpu_option = true
licence = "pasqal"
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "file") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_definitions_are_read_by_name_and_their_credentials_stay_out_of_repr(write):
    entry = {"name": "a-1.b", "type": "pasqal-cloud", "environment": {"K": "secret"}}

    definitions = config.load_qpus(write(json.dumps({"resources": [entry]})))

    assert definitions["a-1.b"].environment == {"K": "secret"}
    assert "secret" not in repr(definitions)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "no list `resources`"),
        ('{"resources": {}}', "no list `resources`"),
        ('{"resources": ["x"]}', "resources[0]"),
        ('{"resources": [{"type": "t"}]}', "no string `name`"),
        ('{"resources": [{"name": "a", "type": 1}]}', "no string `type`"),
        ('{"resources": [{"name": "a b", "type": "t"}]}', "'a b'"),
        ('{"resources": [{"name": "a", "type": "t", "environment": {"K": 1}}]}', "strings"),
    ],
)
def test_a_malformed_qrmi_config_is_refused_with_its_place(write, text, said):
    path = write(text)

    with pytest.raises(ConfigError) as caught:
        config.load_qpus(path)

    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"qpu sandbox up.*qpu sandbox env"):
        config.load_qpus(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match=r"\$QPU_CONFIG is not set"):
        qpus.find_config({"XDG_CONFIG_HOME": str(tmp_path)})


def test_the_users_own_file_is_found_before_the_sites(tmp_path, write):
    (tmp_path / "qrmi-workflows").mkdir()
    own = write("{}", "qrmi-workflows/qrmi_config.json")

    assert qpus.find_config({"XDG_CONFIG_HOME": str(tmp_path)}) == own
    assert qpus.find_config({"QPU_CONFIG": "/elsewhere"}) == Path("/elsewhere")


def test_the_policy_of_a_qpu_is_its_table_over_the_defaults(write):
    site = config.load_site_policy(write(SITE))

    assert site.qpu("ibm_fez") == config.QPUPolicy(
        name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez", lanes=5
    )
    assert site.qpu("FRESNEL").licence == "pasqal"
    assert site.qpu("FRESNEL").qpu_option


def test_a_qpu_that_the_site_does_not_offer_is_refused_with_those_it_does(write):
    site = config.load_site_policy(write(SITE))

    with pytest.raises(UnknownQPUError, match=r"'ibm_torino'.*allowed: FRESNEL, ibm_fez"):
        site.qpu("ibm_torino")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not TOML"),
        ("", "offers no QPU"),
        ("[qpu.a]", "unknown key 'qpu'"),
        ("[qpus]\na = 1", "is no table"),
        ('[qpus."a b"]', "'a b'"),
        ("[qpus.a]\nlane = 2", "unknown key 'lane'; allowed: gres, lanes"),
        ("[qpus.a]\nlanes = 0", "lanes = 0; allowed is a whole number from 1 on"),
        ("[qpus.a]\nlanes = true", "lanes = True"),
        ("[qpus.a]\nqpu_option = 1", "allowed is true or false"),
        ("[qpus.a]\ngres = 1", "allowed is a string"),
    ],
)
def test_a_malformed_policy_is_refused_with_its_place(write, text, said):
    path = write(text)

    with pytest.raises(ConfigError) as caught:
        config.load_site_policy(path)

    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_without_a_name_the_only_qpu_is_meant_and_no_other(tmp_path):
    one = config.QPUDefinition(name="a", type="t", environment={})
    two = config.QPUDefinition(name="b", type="t", environment={})

    assert config.select_qpu(None, {"a": one}, tmp_path) is one
    with pytest.raises(ConfigError, match=r"has 2: a, b\. Name one of them: `--qpu NAME`"):
        config.select_qpu(None, {"a": one, "b": two}, tmp_path)
    with pytest.raises(UnknownQPUError, match="allowed: a"):
        config.select_qpu("z", {"a": one}, tmp_path)


@pytest.mark.parametrize("find", [folders.state_folder, qpus.find_config])
def test_a_user_without_a_home_is_told_what_to_set(find, monkeypatch):
    """As in a container whose user database does not have its user."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)

    with pytest.raises(ConfigError, match=r"4000000 has no home directory: .* Set \$HOME"):
        find({})


def test_json_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "qrmi_config.json"
    path.write_text("[" * 100_000)

    with pytest.raises(ConfigError, match=r"qrmi_config\.json: not JSON"):
        config.load_qpus(path)
