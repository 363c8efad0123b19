"""Who takes part: sites that answer, sites that nobody waits for, and sites whose updates are wanted no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# How reasons begin; who reads a log of rounds tells by them what became of a site.
NO_ANSWER = "no answer to"
EXCLUDED = "excluded after"


class Roster:
    """What the server knows of each site's part in the job.

    A site is *present* until it leaves a task unanswered. Then it is *absent*: it is not asked to do anything that
    the others would wait for, until it answers again. A site that offends (its updates are rejected) too often is
    *excluded* for the rest of the job. Errors and silence are no offence.

    Args:
        sites: all sites of the job.
        max_offences: with this many rejected updates a site is excluded.
        offences: those of an earlier part of the job.
    """

    def __init__(self, sites: Iterable[str], max_offences: int, offences: Mapping[str, int] | None = None) -> None:
        self.sites = sorted(sites)
        self.offences = dict(offences or {})
        self._max_offences = max_offences
        self._absent: dict[str, str] = {}

    @property
    def present(self) -> list[str]:
        """Sites that are asked, sorted."""
        return [site for site in self.sites if site not in self._absent and not self.is_excluded(site)]

    @property
    def absent(self) -> dict[str, str]:
        """Sites that nobody waits for, and why."""
        return {site: reason for site, reason in self._absent.items() if not self.is_excluded(site)}

    @property
    def excluded(self) -> dict[str, str]:
        """Sites that take no part in the rest of the job, and why."""
        return {
            site: f"{EXCLUDED} {self.offences[site]} rejected updates" for site in self.sites if self.is_excluded(site)
        }

    @property
    def left_out(self) -> dict[str, str]:
        """All sites that are not asked, and why."""
        return {**self.absent, **self.excluded}

    def is_excluded(self, site: str) -> bool:
        return self.offences.get(site, 0) >= self._max_offences

    def lose(self, site: str, reason: str) -> None:
        """It gave no answer."""
        self._absent[site] = reason

    def admit(self, site: str) -> None:
        """It answers (again)."""
        self._absent.pop(site, None)

    def offend(self, site: str) -> None:
        """It sent what must not enter the average."""
        self.offences[site] = self.offences.get(site, 0) + 1
