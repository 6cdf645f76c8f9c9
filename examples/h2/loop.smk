# The ground-state energy of molecular hydrogen, found in a loop: one classical and one quantum job
# in each iteration. All of them are in one stage, so they share one lease.
#
#   snakemake -s loop.smk --executor slurm-qpu --jobs 4          on a site with Slurm
#   snakemake -s loop.smk --cores 2                              on this machine, with $QPU_CONFIG

QPU = config.get("qpu", "ibm_fez")
ITERATIONS = config.get("iterations", 3)


def last(kind):
    """Return a function that names the file of the iteration before; the first one has none."""
    return lambda wildcards: [f"loop/{int(wildcards.i) - 1}.{kind}.json"] * (wildcards.i != "1")


rule lowest:
    input: payload=f"loop/{ITERATIONS}.payload.json", result=f"loop/{ITERATIONS}.result.json"
    output: "lowest.json"
    params: bond_length=0.735
    localrule: True
    script: "lowest.py"


rule target:
    output: "target.json"
    params: qpu=QPU
    localrule: True
    shell: "qpu target {params.qpu} -o {output}"


rule step:
    input: target="target.json", payload=last("payload"), result=last("result")
    output: "loop/{i}.payload.json"
    params: bond_length=0.735, precision=1e-4
    resources: qpu_stage="h2"
    script: "step.py"


rule estimate:
    input: "loop/{i}.payload.json"
    output: "loop/{i}.result.json"
    resources: qpu=1, qpu_name=QPU, qpu_stage="h2"
    shell: "qpu run {input} -o {output} --qpu {resources.qpu_name}"
