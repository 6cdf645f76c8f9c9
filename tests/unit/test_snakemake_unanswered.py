"""Finding a job again whose submission was never answered: what is asked, and what is read."""

from snakemake_executor_plugin_slurm_qpu.submission import find_argv, parse_found

LISTED = """\
41|rule_quantum_wildcards_a_job_1-1
42|rule_quantum_wildcards_a_job_1-2
43|
"""


def test_the_queue_is_asked_for_the_runs_jobs_in_the_cluster_that_has_them():
    argv = ["squeue", "--me", "--noheader", "--states=all", "--name=run"]

    assert find_argv("run") == [*argv, "--format=%A|%k"]
    assert find_argv("run", "other") == [*argv, "--clusters=other", "--format=%A|%k"]


def test_the_attempt_that_was_submitted_is_found_and_no_other():
    assert parse_found(LISTED, "rule_quantum_wildcards_a_job_1-2") == "42"
    assert parse_found(LISTED, "rule_quantum_wildcards_a_job_1") is None
