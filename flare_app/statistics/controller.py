"""The server's side of a job that compares the sites' data: it asks once, pools, and writes one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvflare.apis.shareable import Shareable

import fcl
from fcl.data.compare import STATISTICS_FILE
from flare_app.asking import AskingController, JobFailed
from flare_app.protocol import TaskName, exported_in_full, report_of, with_report
from flare_app.roster import Roster
from flare_app.statistics.answers import checked, other_axes
from flare_app.statistics.pooling import pooled
from flare_app.storage import StorageError, replacing, storing


@exported_in_full
class DataStatisticsController(AskingController):
    """Writes ``statistics.json``: of each site and overall the totals and what is told of each measure.

    A site that tells nothing, or that failed, is named in it with the reason, and the others go on.

    Args:
        min_sites: least number of sites that answer; with fewer the job fails.
        task_timeout_s: how long to wait for the answers, in whole seconds; sites may have to read all their data.
    """

    def __init__(self, min_sites: int = 2, task_timeout_s: int = 7200) -> None:
        super().__init__(min_sites, max_offences=1)
        if task_timeout_s < 1:
            raise ValueError(f"task_timeout_s must be at least 1 s, got {task_timeout_s}")
        self.task_timeout_s = task_timeout_s

    def run(self) -> None:
        """The whole job; FLARE calls it in a thread of its own."""
        try:
            self._run()
        except (JobFailed, StorageError) as failure:
            if not self.is_aborted():
                self.panic(str(failure))

    def _run(self) -> None:
        sites = sorted(client.name for client in self.engine.get_clients())
        self.roster = Roster(sites, self.max_offences)
        answers: dict[str, dict[str, Any]] = {}

        def accept(site: str, answer: Shareable) -> None:
            answers[site] = checked(report_of(answer))

        payloads = [(with_report({}), sites)]
        answered, refused = self.ask(TaskName.STATISTICS, payloads, self.task_timeout_s, accept)
        refused.update(other_axes({site: answers[site] for site in answered}))
        told = {site: answers[site] for site in answered if site not in refused}
        self.require_quorum("statistics", told, refused)
        document = _document(told, refused)
        folder = Path(self.engine.get_workspace().get_run_dir(self.fl_ctx.get_job_id())) / "fcl"
        with storing(folder, "statistics"), replacing(folder / STATISTICS_FILE) as stream:
            stream.write((json.dumps(document, indent=1) + "\n").encode())
        totals = document["overall"]["totals"]
        self.info(f"{totals['patients']} patients of {len(document['overall']['sites'])} sites: {folder}")


def _document(told: dict[str, dict[str, Any]], refused: dict[str, str]) -> dict[str, Any]:
    open_sites = {site: entry for site, entry in told.items() if "measures" in entry}
    totals = {
        name: sum(entry["totals"][name] for entry in open_sites.values()) for name in ("patients", "volumes", "slices")
    }
    return {
        "version": fcl.__version__,
        "sites": told,
        "left_out": dict(sorted(refused.items())),
        "overall": {
            "sites": list(open_sites),
            "totals": totals,
            "measures": pooled([entry["measures"] for entry in open_sites.values()]),
        },
    }
