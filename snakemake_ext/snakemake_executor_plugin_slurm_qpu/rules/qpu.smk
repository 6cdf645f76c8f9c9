# Rules for quantum steps, to import as a module; the plugin's documentation shows how.
#
#   NAME.qasm                          a circuit in OpenQASM 3, not transpiled
#     + QPU.target.json                the QPU's qubits and gates, from its vendor
#     → NAME.sampler.json              transpiled, with shots               → NAME.samples.json
#     + NAME.observables.json          {"ZZ": 1.0, …}, or a list of these
#     → NAME.estimator.json            transpiled, with precision           → NAME.estimates.json
#   NAME.sequence.json                 a Pulser sequence, in abstract representation
#     → NAME.pulser.json               with the number of runs              → NAME.pulses.json
#   the workflow's leases              → qpu-usage.csv, qpu-usage.html
#
# config: qpu (for sample and estimate), pulser_qpu (for pulser), shots, precision, runs.

QPU = config.get("qpu", "")
PULSER_QPU = config.get("pulser_qpu", QPU)


wildcard_constraints:
    name=r"[^.]+",


rule target:
    output: "{qpu}.target.json"
    localrule: True
    shell: "qpu target {wildcards.qpu} -o {output}"


rule transpile_sampler:
    input: circuit="{name}.qasm", target=f"{QPU}.target.json"
    output: "{name}.sampler.json"
    params: shots=config.get("shots", 1024)
    script: "transpile.py"


rule transpile_estimator:
    input:
        circuit="{name}.qasm",
        observables="{name}.observables.json",
        target=f"{QPU}.target.json",
    output: "{name}.estimator.json"
    params: precision=config.get("precision", 0.01)
    script: "transpile.py"


rule sample:
    input: "{name}.sampler.json"
    output: "{name}.samples.json"
    resources: qpu=1, qpu_name=QPU
    shell: "qpu run {input:q} -o {output:q} --qpu {resources.qpu_name:q}"


rule estimate:
    input: "{name}.estimator.json"
    output: "{name}.estimates.json"
    resources: qpu=1, qpu_name=QPU
    shell: "qpu run {input:q} -o {output:q} --qpu {resources.qpu_name:q}"


rule pulser_payload:
    input: "{name}.sequence.json"
    output: "{name}.pulser.json"
    params: runs=config.get("runs", 1000)
    localrule: True
    run:
        import json

        with open(input[0]) as sequence, open(output[0], "w") as payload:
            json.dump({"sequence": json.load(sequence), "job_runs": params.runs}, payload)


rule pulser:
    input: "{name}.pulser.json"
    output: "{name}.pulses.json"
    resources: qpu=1, qpu_name=PULSER_QPU
    shell: "qpu run {input:q} -o {output:q} --qpu {resources.qpu_name:q}"


# Needs the results as input, so that it runs last: `use rule usage from qpu with: input: …`.
rule usage:
    output:
        table="qpu-usage.csv",
        page=report("qpu-usage.html", category="QPU", labels={"what": "leases"}),
    localrule: True
    script: "usage.py"
