"""Data only: the sbatch template and the site files."""
