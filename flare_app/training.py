"""A round's training: by the sites whose turn it is and, where too few of them give a result, by some that rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nvflare.apis.shareable import Shareable

from flare_app.asking import AskingController, Payloads
from flare_app.averaging import RoundAverage
from flare_app.exchange import Exchange
from flare_app.intake import Declared, Shared, shares, updates
from flare_app.participation import stand_ins
from flare_app.protocol import Header, TaskName, tensor_bytes
from flare_app.records import RoundRecord, SiteRecord
from flare_app.routing import feature_payloads
from flare_app.stopwatch import Stopwatch
from flare_app.weights import Holders


class Training:
    """Has sites share features, where the job exchanges any, and train.

    Args:
        asking: asks the sites.
        exchange: of the job.
        declared: by site, what it said that it has.
        holders: learns which site holds which weights.
        weights: makes the payloads of a round's global weights for the sites of some records.
        stamp: writes a round's number into a payload.
        timeout_s: of each task.
    """

    def __init__(
        self,
        asking: AskingController,
        exchange: Exchange,
        declared: Mapping[str, Declared],
        holders: Holders,
        weights: Callable[[int, Mapping[str, SiteRecord]], Payloads],
        stamp: Callable[[Shareable, int], None],
        timeout_s: int,
    ) -> None:
        self._asking = asking
        self._exchange = exchange
        self._declared = declared
        self._holders = holders
        self._weights = weights
        self._stamp = stamp
        self._timeout_s = timeout_s

    def run(self, record: RoundRecord, average: RoundAverage, spent: Stopwatch, validates: bool) -> None:
        """Train the sites of ``record``, and as many of its resting ones as it takes; it then tells what became of all.

        Args:
            record: of the round that begins.
            average: takes the updates; knows all sites that may train.
            spent: takes the time.
            validates: whether sites validate the weights that they get.

        Raises:
            JobFailed: when there are too few usable results even so.
        """
        asking, sites, shared = self._asking, list(record.sites), dict[str, Shared]()
        # Who rests and was silent when asked to validate has gone.
        spare = [site for site in record.resting if site in asking.roster.present]
        while sites:
            record.sites.update({site: SiteRecord() for site in sites})
            if self._exchange.active:
                payloads = self._shared(record, sites, spare, shared, spent)
            else:
                payloads = self._weights(record.round, {site: record.sites[site] for site in sites})
            self._trained(record, payloads, spare, average, spent, validates)
            sites = stand_ins(record.round, spare, record.accepted, asking.min_sites)
            spare = [site for site in spare if site not in sites]
            if sites:
                asking.warning(
                    f"round {record.round + 1}: {', '.join(sites)} must step in, whose turn it is not: of those that "
                    f"sites_per_round asks {len(record.accepted)} gave a usable result, {asking.min_sites} are needed"
                )
        record.resting = [site for site in record.resting if site not in record.sites]

    def _shared(
        self,
        record: RoundRecord,
        sites: Sequence[str],
        spare: Sequence[str],
        shared: dict[str, Shared],
        spent: Stopwatch,
    ) -> Payloads:
        """What those of ``sites`` get to train with that have shared features, which go into ``shared``."""
        number, asking = record.round, self._asking
        payloads = self._weights(number, {site: record.sites[site] for site in sites})
        accept = shares(shared, self._exchange.relayed)
        with spent.part("sharing"):
            taken, refused = asking.ask(TaskName.SHARE, payloads, self._timeout_s, accept)
        self._holders.answered(number, taken, refused)
        have = [*record.accepted, *taken]
        asking.require_quorum(f"round {number + 1}, sharing", have, refused, record.rejected, spare)
        record.rejected.update(refused)
        for site in taken:
            features = shared[site].features
            if features is not None:
                record.sites[site].bytes_features_up = tensor_bytes(features.data)
        # Not of those that failed meanwhile: to ask a site that is gone takes long.
        return feature_payloads(self._exchange, number, {site: shared[site] for site in have}, taken)

    def _trained(
        self,
        record: RoundRecord,
        payloads: Payloads,
        spare: Sequence[str],
        average: RoundAverage,
        spent: Stopwatch,
        validates: bool,
    ) -> None:
        number, asking = record.round, self._asking
        for payload, _ in payloads:
            self._stamp(payload, number)
            payload.set_header(Header.VALIDATE, validates)
        accept = updates(average, record, not self._exchange.relayed, self._declared, validates)
        with spent.part("training"):
            taken, refused = asking.ask(TaskName.TRAIN, payloads, self._timeout_s, accept)
        self._holders.answered(number, taken, refused)
        record.accepted = sorted([*record.accepted, *taken])
        asking.require_quorum(f"round {number + 1}", record.accepted, refused, record.rejected, spare)
        record.rejected.update(refused)
