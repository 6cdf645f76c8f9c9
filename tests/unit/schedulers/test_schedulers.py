"""Which scheduler a process uses: the site policy's, else its job's, else Slurm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qrmi_workflows import plugins, schedulers
from qrmi_workflows.errors import ConfigError
from qrmi_workflows.schedulers import describe_this_job, load_scheduler, this_job, this_scheduler
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.state.process import JobIdentity

TOY = Path(__file__).parents[2] / "plugins" / "toy_scheduler"
IN_SLURM = {"SLURM_JOB_ID": "17"}
IN_TOY = {"TOY_JOB": "3"}


def forget_choices() -> None:
    """Clear what the module keeps for the life of a process."""
    for cached in (load_scheduler, plugins._all_plugins, schedulers._policy):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def toy_is_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second scheduler, with the entry point of an installed package."""
    monkeypatch.syspath_prepend(TOY)
    forget_choices()
    yield
    forget_choices()


@pytest.fixture
def site(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Write a site policy with this first line; return the environment that leads to it."""

    def write(first_line: str) -> dict[str, str]:
        path = tmp_path / "site.toml"
        path.write_text(f"{first_line}\n[qpus.ibm_fez]\n")
        return {"QPU_SITE": str(path)}

    return write


@pytest.fixture
def no_site(tmp_path: Path) -> dict[str, str]:
    """An environment without a site policy of the user's."""
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_a_scheduler_is_loaded_by_name_once():
    assert isinstance(load_scheduler("slurm"), Slurm)
    assert load_scheduler("toy") is load_scheduler("toy")


def test_a_name_that_is_not_installed_is_refused_with_those_that_are():
    with pytest.raises(ConfigError) as caught:
        load_scheduler("pbs")

    assert str(caught.value) == (
        "unknown scheduler 'pbs'; must be one of: slurm, toy. Correct `scheduler` in site.toml, or "
        "install its package."
    )


def test_the_policy_chooses(site):
    assert this_scheduler(site('scheduler = "toy"')).name == "toy"


def test_the_policy_takes_precedence_over_the_environment(site):
    environ = site('scheduler = "slurm"') | IN_TOY

    assert this_scheduler(environ).name == "slurm"
    assert this_job(environ) is None


def test_a_policy_with_an_unknown_scheduler_is_refused_with_its_line(site):
    with pytest.raises(ConfigError, match=r"/site\.toml:1: unknown scheduler 'pbs'"):
        this_scheduler(site('scheduler = "pbs"'))


@pytest.mark.parametrize(
    ("job", "name"), [(IN_TOY, "toy"), (IN_SLURM, "slurm"), (IN_TOY | IN_SLURM, "slurm")]
)
def test_without_a_policy_the_environment_chooses(no_site, job, name):
    assert this_scheduler(no_site | job).name == name


def test_a_policy_that_names_no_scheduler_leaves_the_choice_to_the_environment(site):
    assert this_scheduler(site("") | IN_TOY).name == "toy"


def test_a_malformed_policy_leaves_the_choice_to_the_environment(site):
    """Code that needs the policy reports the mistake; a lease that is ending must not."""
    assert this_scheduler(site("[") | IN_TOY).name == "toy"


def test_without_access_to_the_home_folder_the_environment_chooses(no_site, monkeypatch):
    """A Kerberos ticket may expire while a lease is held, which must still be released."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)

    assert this_job(no_site | IN_SLURM) == JobIdentity(id="17")


def test_outside_of_jobs_the_scheduler_is_slurm(no_site):
    assert this_scheduler(no_site).name == "slurm"


def test_the_job_is_the_one_that_the_scheduler_reads(no_site):
    assert this_job(no_site | IN_TOY) == JobIdentity(id="3")
    assert this_job(no_site | IN_SLURM) == JobIdentity(id="17")
    assert this_job(no_site) is None


def test_a_job_is_described_by_its_schedulers_id(no_site):
    assert describe_this_job(no_site | IN_SLURM)["QRMI_JOB_ID"] == "17"
    assert describe_this_job(no_site | IN_TOY)["QRMI_JOB_ID"] == "3"
