"""The jobs of the federation; ``python -m flare_app.job`` exports or runs them."""

from flare_app.job.definition import JOBS, RESULTS, JobSettings, build_job, export_job, run_job

__all__ = ["JOBS", "RESULTS", "JobSettings", "build_job", "export_job", "run_job"]
