"""The plugin, as Snakemake and its plugin catalog import it."""

import shutil
import subprocess
import sys
from dataclasses import MISSING, fields

from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmSettings

from snakemake_executor_plugin_slurm_qpu import ExecutorSettings, common_settings

IMPORT = """
import sys
sys.modules["qrmi"] = None  # importing it fails
import snakemake_executor_plugin_slurm
sys.modules["snakemake"] = None
stock = set(sys.modules)
import snakemake_executor_plugin_slurm_qpu
print(*set(sys.modules) - stock)
"""


def test_the_import_is_quick_and_needs_neither_slurm_nor_qrmi_nor_snakemake(tmp_path):
    which = shutil.which("which")  # the stock plugin's import needs it
    assert which is not None
    (tmp_path / "which").symlink_to(which)

    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    added = set(done.stdout.split())
    assert "snakemake_executor_plugin_slurm_qpu.executor" in added
    # Packages that are slow to import; a time limit would fail on a loaded machine.
    assert not {"numpy", "jsonschema", "rich", "qiskit", "pulser"} & added


def test_every_setting_has_a_default_and_a_help_text():
    for item in fields(ExecutorSettings):
        assert item.default is not MISSING or item.default_factory is not MISSING, item.name
        assert item.metadata["help"], item.name


def test_it_has_all_settings_of_the_stock_executor():
    stock = {item.name for item in fields(SlurmSettings)}

    assert stock < {item.name for item in fields(ExecutorSettings)}
    assert common_settings.non_local_exec
