"""A configuration for Parsl's own tests with defaults only: every call holds a lane of the QPU."""

from parsl.config import Config

from parsl_ext import QPUExecutor, QPUSlurmProvider


def fresh_config() -> Config:
    return Config(executors=[QPUExecutor(provider=QPUSlurmProvider(qpu="ibm_quick"))])
