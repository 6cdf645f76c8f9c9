"""Forget stages that ended long ago."""

from __future__ import annotations

import logging
import shutil
import time

from qrmi_workflows.config.variables import journal_days
from qrmi_workflows.errors import QPUError
from qrmi_workflows.lease.stage import find_stage, list_stages

__all__ = ["prune_stages"]

logger = logging.getLogger(__name__)

_DAY = 86400.0


def prune_stages() -> None:
    """Delete the folders of stages that ended as long ago as the journal forgets steps."""
    oldest = time.time() - journal_days() * _DAY
    for stage in list_stages():
        try:
            if not stage.is_ended or stage.folder.stage.stat().st_mtime > oldest:
                continue
            with stage.folder.locked():
                if find_stage(stage.name) == stage:  # or it has been opened again
                    shutil.rmtree(stage.folder.path)
        except (OSError, QPUError) as error:
            logger.warning("stage %r could not be forgotten: %s", stage.name, error)
