"""The site policy: site.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy, find_site_policy, load_site_policy
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


def load(folder: Path, text: str) -> SitePolicy:
    """Read a site policy with this content."""
    (folder / "site.toml").write_text(text)
    return load_site_policy(folder / "site.toml")


def test_a_qpus_table_overrides_the_defaults(tmp_path):
    site = load(tmp_path, SITE)

    assert site.qpu("ibm_fez") == QPUPolicy(
        name="ibm_fez", gres="qpu:ibm_fez", licence="qpu_ibm_fez", lanes=5
    )
    assert site.qpu("FRESNEL").licence == "pasqal"
    assert site.qpu("FRESNEL").qpu_option


def test_a_qpus_table_takes_defaults_back(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(
        """
        [defaults]
        gres = "qpu:{qpu}"
        licence = "qpu_{qpu}"
        partition = "quantum"

        [qpus.a]
        licence = ""
        partition = ""
        """
    )

    policy = load_site_policy(path).qpu("a")

    assert (policy.gres, policy.licence) == ("qpu:a", None)
    assert policy.all_partitions == ()


def test_only_a_qpus_table_may_take_a_default_back(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[defaults]\nlicence = ""\n[qpus.a]\n')

    with pytest.raises(ConfigError, match=r"site.toml:2: \[defaults\]: licence = '': must be"):
        load_site_policy(path)


def test_a_site_may_name_its_scheduler(tmp_path):
    assert load(tmp_path, SITE).scheduler is None
    assert load(tmp_path, f'scheduler = "slurm"\n{SITE}').scheduler == "slurm"


def test_the_message_about_a_qpu_that_is_not_offered_lists_those_that_are(tmp_path):
    site = load(tmp_path, SITE)

    with pytest.raises(UnknownQPUError, match=r"'ibm_torino'.*must be one of: FRESNEL, ibm_fez"):
        site.qpu("ibm_torino")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid TOML"),
        ("", "offers no QPU"),
        ("[qpu.a]", "unknown key 'qpu'"),
        ("[qpus]\na = 1", "1 is not a table"),
        ('[qpus."a b"]', "invalid QPU name 'a b'"),
        ("[qpus.a]\nlane = 2", "unknown key 'lane'; must be one of: accounts, exclusive, gres, "),
        ("[qpus.a]\nlanes = 0", "lanes = 0: must be a positive integer"),
        ("[qpus.a]\nlanes = true", "lanes = true: must be a positive integer"),
        ("[qpus.a]\nqpu_option = 1", "must be true or false"),
        ("[qpus.a]\ngres = 1", "must be the name of a GRES"),
        ("[qpus.a]\noptions = { a = 1 }", "must be a table of strings"),
        ("scheduler = 1\n[qpus.a]", "scheduler = 1: must be a string"),
    ],
)
def test_a_malformed_policy_is_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert str(tmp_path / "site.toml") in str(caught.value)
    assert message in str(caught.value)


def test_the_message_about_a_missing_policy_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match=r"qpu sandbox up.*qpu sandbox env"):
        load_site_policy(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"\$QPU_SITE is not set"):
        find_site_policy({"XDG_CONFIG_HOME": str(tmp_path)})


def test_the_mode_of_a_stages_sessions_may_be_fixed(tmp_path):
    site = load(tmp_path, '[defaults]\nmode = "batch"\n[qpus.a]\nwaiting_cost = 0.5\n[qpus.b]\n')

    assert (site.qpu("a").mode, site.qpu("a").waiting_cost) == ("batch", 0.5)
    assert (site.qpu("b").mode, site.qpu("b").waiting_cost) == ("batch", 1.0)


@pytest.mark.parametrize(
    "setting", ['mode = "session"', "mode = true", "waiting_cost = -1", "interactive_ttl = 0"]
)
def test_a_wrong_mode_or_waiting_cost_is_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{setting.split()[0]} = .*: must be"):
        load(tmp_path, f"[qpus.a]\n{setting}\n")
