"""The deadline of a machine that runs, moved by its owner's client: nothing else makes it later."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from cloudrun.core import rundir
from cloudrun.core.clock import SystemClock, utc_text
from cloudrun.core.errors import CloudrunError, ConnectionLost
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import UnitOrders, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.runs import bucket
from cloudrun.runs.prepared import submitted_settings
from cloudrun.units.timer import set_timer
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent
    from cloudrun.ssh.session import Session


def move_deadline(
    cloud: Cloud,
    ledger: Ledger,
    unit: UnitRecord,
    deadline: datetime,
    session: Session,
    agent: Agent,
    observe: Observer,
) -> None:
    """The machine's own timer is moved first and read back, then its agent, its tag and the ledger: whatever fails on
    the way, what ends the machine first is as early as it was. A later one is in the ledger before the machine can hold
    it: whoever counts money after this process has died must not count on the earlier. Where the machine does not take
    it, or does not say so, the ledger has the old one again, which its agent is told by whoever connects: it must not
    take its time with saving outputs.

    Raises ConnectionLost, CloudrunError where the machine does not take it.
    """
    if deadline > unit.deadline:
        ledger.update_unit(unit.instance_id, deadline=deadline)
    try:
        set_timer(session, unit, deadline)
    except CloudrunError:
        ledger.update_unit(unit.instance_id, deadline=unit.deadline)
        raise
    orders = agent.standing_orders() or UnitOrders(0.0)
    agent.orders(replace(orders, deadline=deadline.timestamp()))
    left_s = (deadline - SystemClock().now()).total_seconds()
    for run in ledger.unfinished_runs(unit.instance_id):
        attempt = ledger.attempts(run.run_id)[-1]
        if attempt.store:  # what it may upload would end before it does
            max_bytes = (submitted_settings(run) or Settings()).output_max_bytes
            upload = bucket.ticket(cloud, attempt.store, max_bytes, left_s)
            agent.renew_upload(rundir.run_dir(run.run_id, attempt.number), upload)
    try:
        cloud.instances.tag([unit.instance_id], {"cloudrun:expires-at": utc_text(deadline)})
    except CloudrunError as error:  # for people who look at the console; nothing is decided by it
        observe(Note(f"the tag of {unit.instance_id} still says the old deadline: {error}", "warning"))
    ledger.update_unit(unit.instance_id, deadline=deadline)
    with suppress(ConnectionLost):  # a client that connected before the ledger knew has told the agent the old one
        orders = agent.standing_orders() or orders
        if orders.deadline < deadline.timestamp():
            agent.orders(replace(orders, deadline=deadline.timestamp()))
