#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# qpu=1:
#SBATCH --gres=qpu:1
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# partition = "quantum"
# qpu=1:
#SBATCH --partition=quantum
#SBATCH --gres=qpu:1
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# partitions = ["quantum", "debug"]
# qpu=1:
#SBATCH --partition=quantum,debug
#SBATCH --gres=qpu:1
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = true
# qpu=1:
#SBATCH --gres=qpu:1
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = true
# partition = "quantum"
# qpu=1:
#SBATCH --partition=quantum
#SBATCH --gres=qpu:1
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = true
# partitions = ["quantum", "debug"]
# qpu=1:
#SBATCH --partition=quantum,debug
#SBATCH --gres=qpu:1
#SBATCH --qpu=ibm_fez

# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = true
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = true
# partition = "quantum"
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = true
# partitions = ["quantum", "debug"]
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = false
# qpu=3:
#SBATCH --gres=qpu:3
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = false
# partition = "quantum"
# qpu=3:
#SBATCH --partition=quantum
#SBATCH --gres=qpu:3
#SBATCH --qpu=ibm_fez

#!/bin/sh
# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = false
# partitions = ["quantum", "debug"]
# qpu=3:
#SBATCH --partition=quantum,debug
#SBATCH --gres=qpu:3
#SBATCH --qpu=ibm_fez

# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = false
# qpu=6:
# refused: qpu=6 for QPU 'ibm_fez': it has 5 lanes. Ask for qpu=5 or fewer.

# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = false
# partition = "quantum"
# qpu=6:
# refused: qpu=6 for QPU 'ibm_fez': it has 5 lanes. Ask for qpu=5 or fewer.

# [qpus.ibm_fez]
# gres = "qpu"
# qpu_option = true
# lanes = 5
# exclusive = false
# partitions = ["quantum", "debug"]
# qpu=6:
# refused: qpu=6 for QPU 'ibm_fez': it has 5 lanes. Ask for qpu=5 or fewer.
