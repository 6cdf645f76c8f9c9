"""What a job was granted: asked field by field, so that no name or comment grants anything."""

from dataclasses import replace
from pathlib import Path

import pytest

from qrmi_workflows.config.site import QPUPolicy, SitePolicy
from qrmi_workflows.schedulers.slurm import Slurm
from qrmi_workflows.schedulers.slurm_grants import (
    GrantedJob,
    choices_argv,
    grants_argv,
    has_choice,
    parse_rows,
    resolve,
)

FEZ = QPUPolicy(name="fez", gres="qpu:fez", licence="qpu_fez")
OTHER = QPUPolicy(name="other", gres="qpu:other", licence="qpu_other")
TYPED = QPUPolicy(name="fez", gres="qpu:fez")
SITE = SitePolicy(path=Path("site.toml"), qpus={"fez": TYPED})
NOBODY = frozenset()

# The rows of Slurm 22.05 have these forms, with `!` for the separator.
BATCH = "3!N/A!1!1!1!1:00:00!(null)!qpu_fez:1!N/A!N/A!gres:qpu:fez:1!N/A!"
NODES = "3!N/A!2!2!1!UNLIMITED!(null)!(null)!N/A!N/A!gres:qpu:1!N/A!"
HET = "4!4-5!1!1!1!UNLIMITED!(null)!(null)!N/A!N/A!N/A!N/A!"
HET_SECOND = "5!4-5!1!1!1!UNLIMITED!(null)!(null)!N/A!N/A!gres:qpu:fez:1!N/A!"
PLAIN = "3!N/A!1!1!1!UNLIMITED!(null)!(null)!N/A!N/A!N/A!N/A!"
UNTYPED = PLAIN.replace("N/A!N/A!N/A!N/A!", "N/A!N/A!gres:qpu:1!N/A!")


def rows(*lines):
    return list(parse_rows("\n".join(lines).replace("!", "\x1f")).values())


def granted(*lines, scontrol=None, is_certain=True):
    found = rows(*lines)
    row = found[0]
    grants = resolve(found, scontrol, is_certain=is_certain)
    return GrantedJob(grants=grants, is_batch=row.is_batch, limit=row.limit, account=row.account)


def held(line, policies, plugin_qpus=NOBODY):
    return granted(line).qpus(policies, plugin_qpus)


@pytest.mark.parametrize("gres", ["gres:qpu:fez:1", "gres/qpu:fez:1", "gres:gpu:2,gres:qpu:fez:1"])
def test_a_job_holds_what_squeue_lists(gres):
    assert held(BATCH.replace("gres:qpu:fez:1", gres), [FEZ, OTHER]) == ["fez"]


@pytest.mark.parametrize(
    "line",
    [
        BATCH.replace("gres:qpu:fez", "gres:qpu:other"),
        BATCH.replace("qpu_fez:1", "(null)"),
        BATCH.replace("qpu_fez:1", "qpu_other:1"),
        PLAIN,
    ],
)
def test_a_job_needs_all_that_the_policy_requires(line):
    assert held(line, [FEZ]) == []


def test_the_counts_are_those_of_the_whole_job():
    two = BATCH.replace("!1!1!1!", "!2!4!1!").replace("qpu:fez:1", "qpu:fez:3(S:0)")
    assert granted(two).grants.counts["gres", "qpu:fez"] == 6
    per_task = two.replace("gres:qpu:fez:3(S:0)!N/A", "N/A!gres/qpu:fez:1")
    assert granted(per_task).grants.units(TYPED) == 4
    per_job = two.replace("N/A!N/A!gres:qpu:fez:3(S:0)", "gres:qpu:fez:1!N/A!N/A")
    assert granted(per_job).grants.units(TYPED) == 1


def test_a_qpu_that_the_scheduler_does_not_count_is_held_by_those_who_ask_for_it():
    bare = QPUPolicy(name="fez", qpu_option=True)
    srun = PLAIN.replace("!1!1!1!", "!1!1!0!")

    assert held(srun, [bare]) == []
    assert held(srun, [bare], {"fez"}) == ["fez"]


def test_a_batch_job_with_the_plugins_option_is_left_to_the_plugin():
    policies = [replace(FEZ, qpu_option=True)]

    assert held(BATCH, policies, {"fez", "other"}) == []
    assert held(BATCH.replace("!1!1!1!", "!1!1!0!"), policies, {"fez", "other"}) == ["fez"]


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("1:00:00", 3600), ("1-00:00:30", 86430), ("5:00", 300), ("365-00:00:00", None), ("x", None)],
)
def test_the_time_limit(limit, seconds):
    assert granted(BATCH.replace("1:00:00", limit)).limit == seconds


def shown(gres="(null)", licences="(null)", name="x"):
    """The output of `scontrol show job`, as far as it matters."""
    return (
        f"JobId=3 JobName={name}\n   UserId=ada(1001)\n     JOB_GRES={gres}\n"
        f"   OverSubscribe=OK Contiguous=0 Licenses={licences} Network=(null)\n"
    )


FORGED = "x\n   JOB_GRES=qpu:fez:1\n   OverSubscribe=OK Licenses=qpu_fez:1 Network=x"


def test_slurm_chooses_the_type_of_a_gres_and_one_of_several_licences():
    assert has_choice(rows(UNTYPED), [TYPED])
    assert has_choice(rows(BATCH.replace("qpu_fez:1", "qpu_fez:1|qpu_other:1")), [FEZ])
    assert not has_choice(rows(UNTYPED), [QPUPolicy(name="fez", gres="qpu")])
    assert not has_choice(rows(BATCH), [FEZ])


@pytest.mark.parametrize("is_certain", [True, False])
def test_the_type_that_slurm_has_chosen(is_certain):
    chosen = shown("qpu:fez:2,qpu:other:0")
    grants = granted(NODES, scontrol=chosen, is_certain=is_certain).grants
    assert (grants.gres, grants.units(TYPED)) == ({"qpu:fez"}, 2)


@pytest.mark.parametrize("is_certain", [True, False])
def test_a_forged_type_does_not_count(is_certain):
    output = shown("qpu:other:1", name=FORGED)
    assert granted(UNTYPED, scontrol=output, is_certain=is_certain).grants.gres == frozenset()


def test_where_slurm_shows_no_type_the_request_may_be_for_any():
    """`select/linear` allocates nodes."""
    for output in ("JobId=3 JobName=x\n", shown()):
        assert granted(UNTYPED, scontrol=output).grants.gres == frozenset()
        assert granted(UNTYPED, scontrol=output, is_certain=False).grants.gres == {"qpu"}


EITHER = BATCH.replace("qpu_fez:1", "qpu_other:1|qpu_fez:1")


def test_of_alternative_licences_a_job_holds_the_allocated_one():
    """Slurm 26.05 shows it, earlier versions do not."""
    told = shown("qpu:fez:1", "qpu_other:1|qpu_fez:1 LicensesAlloc=qpu_fez:1")
    assert granted(EITHER, scontrol=told).grants.licences == {"qpu_fez"}

    silent = shown("qpu:fez:1", "qpu_other:1|qpu_fez:1")
    assert granted(EITHER, scontrol=silent).grants.licences == frozenset()
    maybe = granted(EITHER, scontrol=silent, is_certain=False).grants
    assert maybe.licences == {"qpu_fez", "qpu_other"}


def test_a_forged_licence_does_not_count():
    forged = FORGED.replace("Licenses=qpu_fez:1", "Licenses=a LicensesAlloc=qpu_fez:1")
    told = shown("qpu:fez:1", "qpu_other:1|qpu_fez:1 LicensesAlloc=qpu_other:1", name=forged)
    assert granted(EITHER, scontrol=told).grants.licences == frozenset()


def test_the_components_of_a_heterogeneous_job_hold_their_grants_together(commands):
    script = 'case "$2" in --jobs=4) rows="{0}";; *) rows="{0}\n{1}";; esac; echo "$rows"'
    lines = [line.replace("!", "\x1f") for line in (HET, HET_SECOND)]
    commands.write("squeue", script.format(*lines))

    assert Slurm().granted_qpus(SITE, {"SLURM_JOB_ID": "4"}) == {"fez": 1}
    assert commands.calls("squeue")[1].startswith("--noheader --jobs=4,5 ")


def write_job(commands, line, output=""):
    commands.write("squeue", f"printf '%s\\n' '{line.replace('!', chr(31))}'")
    (commands.folder / "shown").write_text(output)
    commands.write("scontrol", f"cat {commands.folder}/shown")


def test_a_job_is_asked_for_what_it_holds_with_one_command(commands):
    write_job(commands, BATCH, shown("qpu:fez:1"))

    assert Slurm().granted_qpus(SITE, {"SLURM_JOB_ID": "3"}) == {"fez": 1}
    assert commands.calls("squeue") == [" ".join(grants_argv(["3"])[1:])]
    assert commands.calls("scontrol") == []


def test_a_job_is_asked_for_the_type_that_slurm_has_chosen(commands):
    write_job(commands, UNTYPED, shown("qpu:fez:1"))

    assert Slurm().granted_qpus(SITE, {"SLURM_JOB_ID": "3"}) == {"fez": 1}
    assert commands.calls("scontrol") == [" ".join(choices_argv("3")[1:])]


@pytest.mark.parametrize("line", [PLAIN, UNTYPED.replace("qpu:1", "gpu:1")])
def test_a_name_with_line_breaks_grants_nothing(commands, line):
    write_job(commands, line, shown(name=FORGED))

    assert Slurm().granted_qpus(SITE, {"SLURM_JOB_ID": "3"}) == {}


@pytest.mark.parametrize("line", ["", "33" + PLAIN[1:]])
def test_what_an_unknown_job_holds_is_not_known(commands, line):
    write_job(commands, line)

    assert Slurm().granted_qpus(SITE, {"SLURM_JOB_ID": "3"}) is None
