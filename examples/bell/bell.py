import json
from pathlib import Path

import parsl
from parsl.config import Config

from parsl_ext import QPUExecutor, QPUSlurmProvider, qpu_app


@qpu_app
def sample(payload, *, lease):
    return lease.run(payload).counts()


with parsl.load(Config(executors=[QPUExecutor(provider=QPUSlurmProvider(qpu="ibm_fez"))])):
    print(sample(json.loads(Path("bell.json").read_text())).result())
