#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# qpu=1:
#SBATCH --licenses=qpu_ibm_fez:1

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# partition = "quantum"
# qpu=1:
#SBATCH --partition=quantum
#SBATCH --licenses=qpu_ibm_fez:1

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# partitions = ["quantum", "debug"]
# qpu=1:
#SBATCH --partition=quantum,debug
#SBATCH --licenses=qpu_ibm_fez:1

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = true
# qpu=1:
#SBATCH --licenses=qpu_ibm_fez:1

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = true
# partition = "quantum"
# qpu=1:
#SBATCH --partition=quantum
#SBATCH --licenses=qpu_ibm_fez:1

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = true
# partitions = ["quantum", "debug"]
# qpu=1:
#SBATCH --partition=quantum,debug
#SBATCH --licenses=qpu_ibm_fez:1

# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = true
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = true
# partition = "quantum"
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = true
# partitions = ["quantum", "debug"]
# qpu=2:
# refused: qpu=2 for QPU 'ibm_fez': one job holds the whole QPU, with all its lanes. Ask for qpu=1.

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = false
# qpu=3:
#SBATCH --licenses=qpu_ibm_fez:3

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = false
# partition = "quantum"
# qpu=3:
#SBATCH --partition=quantum
#SBATCH --licenses=qpu_ibm_fez:3

#!/bin/sh
# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = false
# partitions = ["quantum", "debug"]
# qpu=3:
#SBATCH --partition=quantum,debug
#SBATCH --licenses=qpu_ibm_fez:3

# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = false
# qpu=6:
# refused: qpu=6 for QPU 'ibm_fez': it has 5 lanes. Ask for qpu=5 or fewer.

# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = false
# partition = "quantum"
# qpu=6:
# refused: qpu=6 for QPU 'ibm_fez': it has 5 lanes. Ask for qpu=5 or fewer.

# [qpus.ibm_fez]
# licence = "qpu_{qpu}"
# lanes = 5
# exclusive = false
# partitions = ["quantum", "debug"]
# qpu=6:
# refused: qpu=6 for QPU 'ibm_fez': it has 5 lanes. Ask for qpu=5 or fewer.
