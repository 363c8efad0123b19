"""How a site goes on from what it saved in an earlier run of the job, or learns why it cannot."""

from __future__ import annotations

import logging

from fcl.federation import Participant
from flare_app.protocol import SiteError
from flare_app.state import SiteState, SiteStates, set_random_state
from flare_app.storage import StorageError

logger = logging.getLogger(__name__)


def restored(states: SiteStates, participant: Participant, round_number: int, site: str) -> SiteState | None:
    """Give ``participant`` and this process the state that they had after ``round_number`` rounds.

    Args:
        states: where they lie; those of another run are forgotten when none is to be gone on with.
        participant: as it was built.
        round_number: rounds finished; 0 begins anew.
        site: its name, for the log.

    Returns:
        the state found, which may be of an earlier round; None where the site begins afresh.

    Raises:
        SiteError: when states cannot be saved, or the one found is of other data or settings. The participant may
            then hold a part of it, and is of no more use.
    """
    try:
        states.check()
    except StorageError as error:
        raise SiteError(f"this site cannot save its state, see the log of {site}") from error
    if round_number == 0:
        states.clear()
        return None
    state = states.load(round_number)
    if state is None:
        logger.warning(f"{site}: no saved state, this site begins afresh in round {round_number}")
        return None
    if state.round != round_number:
        logger.warning(f"{site}: the newest saved state is of round {state.round}, not {round_number}")
    try:
        participant.load_state_dict(state.participant)
        set_random_state(state.rng)
    except Exception as error:  # each part of a participant refuses in its own way what was saved by another
        # All of them: without the newest alone an older one would be found, and refused as well.
        files = ", ".join(file.name for file in states.files())
        logger.error(f"{site}: to begin afresh move {files} out of {states.folder}; a privacy ledger stays where it is")
        raise SiteError(
            "its saved state is of other data or settings: set its data, batch_size and device back to what they "
            "were, or move the saved state away and begin afresh from the global weights; files and folder are in "
            f"the log of {site}"
        ) from error
    return state
