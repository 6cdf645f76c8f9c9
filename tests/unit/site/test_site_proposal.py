"""The text of a proposed site policy."""

from __future__ import annotations

import pytest

from qrmi_workflows.config.site import QPUPolicy, load_site_policy
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.site.proposal import render_policy

FOUND = {
    "a": {"gres": "qpu:{qpu}", "licence": "qpu_{qpu}", "partition": "q", "groups": ["qc", "ml"]},
    "b.c": {"gres": "qpu:{qpu}", "lanes": 3, "exclusive": False, "options": {"queue": "q"}},
}


def test_what_all_qpus_have_in_common_is_a_default(tmp_path):
    text = render_policy(["a", "b.c", "d"], FOUND, "slurm")

    assert text == (
        "# Proposed by `qpu doctor --write`. Read it before you use it.\n"
        'scheduler = "slurm"\n\n'
        '[defaults]\ngres = "qpu:{qpu}"\n\n'
        '[qpus."a"]\nlicence = "qpu_{qpu}"\npartition = "q"\ngroups = ["qc", "ml"]\n\n'
        '[qpus."b.c"]\nlanes = 3\nexclusive = false\noptions = { queue = "q" }\n\n'
        "# The scheduler does not grant d: it has nothing of that name.\n"
    )
    (tmp_path / "site.toml").write_text(text)
    site = load_site_policy(tmp_path / "site.toml")
    assert site.scheduler == "slurm"
    assert site.qpu("a") == QPUPolicy(
        name="a", gres="qpu:a", licence="qpu_a", partition="q", groups=("qc", "ml")
    )


def test_the_only_qpu_has_its_settings_in_its_own_table():
    assert "[defaults]" not in render_policy(["a"], {"a": FOUND["a"]}, "slurm")


def test_names_that_a_policy_cannot_have_are_refused():
    with pytest.raises(ConfigError, match=r"cannot propose a policy: .*must be the name of a part"):
        render_policy(["a"], {"a": {"partition": "a b"}}, "slurm")
