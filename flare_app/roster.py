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

    Each silence costs the others a timeout. So a site that falls silent again and again, and gives no usable update
    between, is asked again after ever more rounds: 1, 2, 4, ... of them go by without it.

    Args:
        sites: all sites of the job.
        max_offences: with this many rejected updates a site is excluded.
        offences: those of an earlier part of the job.
        silences: tasks that each site left unanswered in an earlier part of the job, since its last usable update.
    """

    def __init__(
        self,
        sites: Iterable[str],
        max_offences: int,
        offences: Mapping[str, int] | None = None,
        silences: Mapping[str, int] | None = None,
    ) -> None:
        self.sites = sorted(sites)
        self.offences = dict(offences or {})
        self.silences = dict(silences or {})
        self._max_offences = max_offences
        self._absent: dict[str, str] = {}
        self._pause: dict[str, int] = {}  # rounds in which an absent site is not even asked

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
        """It cannot take part, for now."""
        self._absent[site] = reason

    def miss(self, site: str, reason: str) -> int:
        """It left a task unanswered; gives the rounds that go by without it."""
        self.silences[site] = self.silences.get(site, 0) + 1
        rounds = 2 ** (self.silences[site] - 1)
        # Who is asked takes part from the next round on: of a single round none is left to wait.
        self._pause[site] = rounds - 1
        self.lose(site, reason)
        return int(rounds)

    def due(self) -> list[str]:
        """Absent sites that are to be asked again; to be called once in a round."""
        pausing = [site for site in self.absent if self._pause.get(site, 0) > 0]
        for site in pausing:
            self._pause[site] -= 1
        return [site for site in self.absent if site not in pausing]

    def admit(self, site: str) -> None:
        """It answers (again)."""
        self._absent.pop(site, None)
        self._pause.pop(site, None)

    def contributed(self, sites: Iterable[str]) -> None:
        """They gave usable updates: their silences are forgotten."""
        for site in sites:
            self.silences.pop(site, None)

    def offend(self, site: str) -> None:
        """It sent what must not enter the average."""
        self.offences[site] = self.offences.get(site, 0) + 1
