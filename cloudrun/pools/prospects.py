"""Whether more machines can be had: what launches and the machines themselves have shown so far."""

from __future__ import annotations

from collections.abc import Callable

from cloudrun.core.clock import Clock
from cloudrun.core.errors import (
    CapacityError,
    CloudrunError,
    CredentialsError,
    QuotaError,
    UnresolvedLaunch,
    UsageError,
)
from cloudrun.core.events import Note, Observer
from cloudrun.plan.offers import Offer
from cloudrun.plan.retrying import useless_launches
from cloudrun.pools.renting import Launched

PATIENCE_S = 600.0  # for capacity, while nothing runs
QUOTA_PATIENCE_S = 120.0  # for machines that are shutting down to count no more
HOPELESS = (CredentialsError, QuotaError, UsageError)  # asking EC2 once more gives the same answer


class Prospects:
    """`failure`: of a machine, the last one."""

    def __init__(self, clock: Clock, observe: Observer) -> None:
        self._clock = clock
        self._observe = observe
        self._barred = ""
        self._worked: list[bool] = []
        self._boots: list[float] = []
        self._short_since: float | None = None  # since when EC2 has had none, and nothing runs
        self._quota: int | None = None  # so many machines are allowed at the moment
        self._has_launched = False
        self._said: set[str] = set()
        self._refusal: BaseException | None = None  # of a launch, the last one
        self.failure: BaseException | None = None

    @property
    def hopeless(self) -> str:
        """Why no further machine is launched; "" while one may be."""
        return self._barred or useless_launches(self._worked)

    @property
    def cause(self) -> BaseException | None:
        """The error behind `hopeless`."""
        if not self.hopeless:
            return None
        return self._refusal if self._barred else self.failure or self._refusal

    def begin_anew(self) -> None:
        """Whoever waited has learnt it: what comes later may fare better."""
        self._barred = ""
        self._worked.clear()
        self._short_since = None

    def most_units(self, allowed: int) -> int:
        return allowed if self._quota is None else min(allowed, self._quota)

    def boot_s(self, otherwise: float) -> float:
        """From asking for a machine until it works, as seen so far."""
        return sum(self._boots) / len(self._boots) if self._boots else otherwise

    def booted(self, seconds: float) -> None:
        self._boots.append(seconds)

    def ended(self, *, worked: bool) -> None:
        """A machine is over that was wanted. `worked`: something was carried out on it."""
        self._worked.append(worked)
        self._quota = None  # there is room for another one, or will be in a moment

    def launched(self) -> None:
        self._short_since = None
        self._has_launched = True

    def refused(self, event: Launched, offer: Callable[[], Offer | None], *, machines: int) -> None:
        """A launch came to nothing. `offer`: what would be asked for next; `machines`: how many there are. Raises what
        is no error of ours."""
        self._refusal = error = event.error
        if not isinstance(error, CloudrunError):
            raise error or AssertionError("a launch without an error is not refused")
        next_step = error.next_step
        if isinstance(error, QuotaError) and event.count > 1:
            next_step = "asking for fewer at once"
        elif isinstance(error, QuotaError) and machines:
            self._quota = machines
            next_step = f"going on with {machines}: {next_step}"
        elif isinstance(error, QuotaError) and self._has_launched:  # those that ended may count for a while
            self._is_short(error, QUOTA_PATIENCE_S)
        elif isinstance(error, (*HOPELESS, UnresolvedLaunch)):
            self._barred = f"no further machine is launched: {error}; {next_step}"
        elif isinstance(error, CapacityError):
            self._is_short(error, 0.0 if machines else PATIENCE_S)
            following = offer()
            next_step = (
                f"trying {following}"
                if following is not None
                else f"asking again for {PATIENCE_S / 60:.0f} minutes while nothing runs (Ctrl-C ends it)"
            )
        else:
            self.ended(worked=False)
        self._warn(f"{error}; {next_step}")

    def _is_short(self, error: CapacityError, patience_s: float) -> None:
        """While nothing runs, wait so long; 0 is as long as something does."""
        now = self._clock.monotonic()
        self._short_since = now if self._short_since is None or not patience_s else self._short_since
        if patience_s and now - self._short_since > patience_s:
            self._barred = f"no machine could be had for {patience_s:.0f} s: {error}; {error.next_step}"

    def _warn(self, text: str) -> None:
        """Once: it is tried again and again."""
        if text not in self._said:
            self._said.add(text)
            self._observe(Note(text, "warning"))
