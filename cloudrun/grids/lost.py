"""Runs whose machine went while nobody looked: what it left in a bucket comes home, the rest waits for another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import BucketMissing, CloudrunError, LedgerError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState, is_terminal
from cloudrun.ledger import Ledger
from cloudrun.runs.pulling import clear_stores, pull_stored, requeue_unseen
from cloudrun.wiring import Cloud

FETCHERS = 8

GiveUp = Callable[[Ledger, RunRecord, str], None]


def recover(
    ledger: Ledger,
    cloud: Cloud | None,
    runs: Iterable[RunRecord],
    why: str,
    observe: Observer,
    give_up: GiveUp = requeue_unseen,
) -> list[RunRecord]:
    """Returns those that have come home. `give_up` is called for each that has left nothing; one whose bucket does not
    answer stays as it is. Raises LedgerError."""

    def look(run: RunRecord) -> RunRecord | None:
        attempt = ledger.attempts(run.run_id)[-1]
        try:
            if cloud is not None and pull_stored(cloud, ledger, run, attempt, observe, SystemClock()):
                clear_stores(cloud, ledger, run.run_id, observe)
        except BucketMissing:
            pass
        except LedgerError:
            raise
        except CloudrunError as error:
            observe(Note(f"what {run.run_id} may have left in {attempt.store} cannot be had: {error}", "warning"))
            return None
        now = ledger.run(run.run_id)
        if not is_terminal(now.state) and now.state is not RunState.QUEUED:
            give_up(ledger, now, why)
        return now if is_terminal(now.state) else None

    with ThreadPoolExecutor(FETCHERS, thread_name_prefix="cloudrun-recover") as pool:
        return [run for run in pool.map(look, runs) if run is not None]
