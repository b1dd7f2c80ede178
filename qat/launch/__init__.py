"""Launch of a training in several processes: by this command, by torchrun, or by SLURM's srun."""
