"""One script, one unit, everything home: what `cloudrun submit` does."""

from __future__ import annotations

from cloudrun import runs, wiring
from cloudrun.core.events import Observer
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger, Run
from cloudrun.opening import close_behind, open_unit
from cloudrun.runs import Job

__all__ = ["Job", "submit"]


def submit(job: Job, settings: Settings, *, ledger: Ledger, observe: Observer) -> Run:
    """Run `job` on a unit of its own. Returns its run, also a failed one; everything else that goes wrong raises.

    Nothing is launched before the script, its parameters, its environment, the region and the type have been checked.
    """
    runs.inspect(job, settings, ledger, observe)
    cloud = wiring.connect(settings.provider, settings.region, settings.profile)
    image = cloud.images.find(settings.instance_type, image_id=settings.image, user=settings.user)
    plan = runs.prepare(job, settings, ledger, image.architecture, observe)
    unit = open_unit(cloud, ledger, settings, observe, image=image)
    try:
        run = runs.execute(unit, plan, check=False)
    except BaseException as error:
        close_behind(unit, error)
        raise
    unit.close()
    return ledger.get(run.run_id)
