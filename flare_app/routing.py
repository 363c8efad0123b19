"""Whose features a site gets in a round, and what the server tells or sends it for that."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable

from flare_app.asking import Payloads
from flare_app.exchange import Exchange, sampled
from flare_app.intake import Shared
from flare_app.protocol import Header, with_report


def choose_peers(
    round_number: int, sites: Sequence[str], offering: Collection[str], fan_out: int | None
) -> dict[str, list[str]]:
    """Each site to the peers that it gets features from, sorted.

    The sites stand in a circle, in an order that is another one in each round and the same whenever the round is done;
    each gets those of the next ``fan_out`` that offer some. So each is asked by as many as it asks when all offer, and
    over the rounds all meet.

    Args:
        round_number: of the round.
        sites: that take part.
        offering: those of them that have features to show.
        fan_out: how many peers; None for all.
    """
    circle = sorted(sites, key=lambda site: hashlib.sha256(f"{round_number} {site}".encode()).digest())
    chosen = {}
    for place, site in enumerate(circle):
        following = [peer for peer in (*circle[place + 1 :], *circle[:place]) if peer in offering]
        chosen[site] = sorted(following[:fan_out])
    return chosen


def feature_payloads(
    exchange: Exchange, round_number: int, shared: Mapping[str, Shared], training: Collection[str]
) -> Payloads:
    """What each site gets to train with: the names of its peers or, relayed, their features.

    Args:
        exchange: of the job.
        round_number: of the round.
        shared: what each site shares.
        training: those of them that are to train; the others have done so in this round.
    """
    if not training:
        return []  # else a payload for nobody, which FLARE takes as one for all
    # A site that shows nothing (withheld, cohort too small, budget spent) trains on, but is not asked in vain.
    offering = [site for site in sorted(shared) if shared[site].rows > 0]
    sites = sorted(training)
    if not exchange.relayed and exchange.fan_out is None:
        return [(_told(offering), sites)]  # each knows that it is no peer of its own
    chosen = choose_peers(round_number, sorted(shared), offering, exchange.fan_out)
    if not exchange.relayed:
        return [(_told(chosen[site]), [site]) for site in sites]
    payloads: Payloads = []
    for site in sites:
        features = {peer: shared[peer].features for peer in chosen[site]}
        sets = {
            peer: sampled(dxo, exchange.pull_rows, peer, site).to_dict()
            for peer, dxo in features.items()
            if dxo is not None
        }
        payloads.append((DXO(DataKind.COLLECTION, data=sets).to_shareable(), [site]))
    return payloads


def _told(peers: list[str]) -> Shareable:
    payload = with_report({})
    payload.set_header(Header.PEERS, peers)
    return payload
