#!/bin/sh
# [qpus.ibm_fez]
# qpu=1:

#!/bin/sh
# [qpus.ibm_fez]
# partition = "quantum"
# qpu=1:
#SBATCH --partition=quantum

#!/bin/sh
# [qpus.ibm_fez]
# partitions = ["quantum", "debug"]
# qpu=1:
#SBATCH --partition=quantum,debug

#!/bin/sh
# [qpus.ibm_fez]
# lanes = 5
# exclusive = true
# qpu=1:

#!/bin/sh
# [qpus.ibm_fez]
# lanes = 5
# exclusive = true
# partition = "quantum"
# qpu=1:
#SBATCH --partition=quantum

#!/bin/sh
# [qpus.ibm_fez]
# lanes = 5
# exclusive = true
# partitions = ["quantum", "debug"]
# qpu=1:
#SBATCH --partition=quantum,debug

# [qpus.ibm_fez]
# lanes = 5
# exclusive = true
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = true
# partition = "quantum"
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = true
# partitions = ["quantum", "debug"]
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = false
# qpu=3:
# refused: site.toml:3: [qpus.ibm_fez]: exclusive = false, but neither gres nor licence counts the lanes that jobs share. Set `licence`, or `gres`.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = false
# partition = "quantum"
# qpu=3:
# refused: site.toml:3: [qpus.ibm_fez]: exclusive = false, but neither gres nor licence counts the lanes that jobs share. Set `licence`, or `gres`.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = false
# partitions = ["quantum", "debug"]
# qpu=3:
# refused: site.toml:3: [qpus.ibm_fez]: exclusive = false, but neither gres nor licence counts the lanes that jobs share. Set `licence`, or `gres`.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = false
# qpu=6:
# refused: site.toml:3: [qpus.ibm_fez]: exclusive = false, but neither gres nor licence counts the lanes that jobs share. Set `licence`, or `gres`.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = false
# partition = "quantum"
# qpu=6:
# refused: site.toml:3: [qpus.ibm_fez]: exclusive = false, but neither gres nor licence counts the lanes that jobs share. Set `licence`, or `gres`.

# [qpus.ibm_fez]
# lanes = 5
# exclusive = false
# partitions = ["quantum", "debug"]
# qpu=6:
# refused: site.toml:3: [qpus.ibm_fez]: exclusive = false, but neither gres nor licence counts the lanes that jobs share. Set `licence`, or `gres`.
