"""What a site installs: Slurm's scripts that acquire and release QPUs, and their administration."""
