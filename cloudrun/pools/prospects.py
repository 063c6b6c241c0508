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
from cloudrun.plan.offers import Offer, offers_text
from cloudrun.plan.quantities import duration_text
from cloudrun.plan.retrying import useless_launches
from cloudrun.pools.renting import Launched
from cloudrun.units.capacity import none_left, refusal_text

PATIENCE_S = 600.0  # for capacity, while nothing runs of what has had machines before
# Where there never was a machine, who typed the command still sits before it, and may allow another type or region: all
# that is allowed is asked for four times, with pauses of 10, 20 and 40 s.
FIRST_PATIENCE_S = 60.0
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
        self._none: list[Offer] = []  # what EC2 did not have, since it had something or all was asked for
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
        self._said.clear()
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
        self._none.clear()
        self._said -= {"shortage", "shortage beside machines"}
        self._has_launched = True

    def refused(self, event: Launched, offer: Callable[[], Offer | None], *, machines: int) -> None:
        """A launch came to nothing. `offer`: what would be asked for next; `machines`: how many there are. Raises what
        is no error of ours."""
        self._refusal = error = event.error
        if not isinstance(error, CloudrunError):
            raise error or AssertionError("a launch without an error is not refused")
        if isinstance(error, CapacityError) and event.count > 1:  # fewer at once may be there
            self._observe(Note(f"{event.count} at once: {error}", "verbose"))
        elif isinstance(error, QuotaError) and machines:
            self._quota = machines
            self._warn(f"{error}; going on with {machines}: {error.next_step}", "quota")
        elif isinstance(error, QuotaError) and self._has_launched:  # those that ended may count for a while
            wait = f"asking again for {duration_text(QUOTA_PATIENCE_S)}, since machines that have ended may still count"
            self._warn(f"{error}; {wait}", "quota without machines")
            self._wait_or_bar(QUOTA_PATIENCE_S, error)
        elif isinstance(error, (*HOPELESS, UnresolvedLaunch)):
            self._barred = f"no further machine is launched: {error}; {error.next_step}"
            if machines:  # else nothing goes on, and the error itself is all there is to say
                self._warn(self._barred)
        elif isinstance(error, CapacityError):
            self._none_there(event.offer, error, offer(), machines)
        else:
            self.ended(worked=False)
            self._warn(f"{error}; {error.next_step}")

    def _none_there(self, asked: Offer, error: CapacityError, following: Offer | None, machines: int) -> None:
        self._observe(Note(f"{error}", "verbose"))
        self._none.append(asked)
        now = self._clock.monotonic()
        if machines or self._short_since is None:
            self._short_since = now
        if following is not None:
            if said := refusal_text(self._none, following):
                self._warn(said)
            return
        none, self._none = self._none, []
        if machines:
            self._warn(f"no {offers_text(none)}: asking again while {machines} go on", "shortage beside machines")
            return
        patience_s = PATIENCE_S if self._has_launched else FIRST_PATIENCE_S
        self._warn(f"no {offers_text(none)}: asking again for {duration_text(patience_s)} (Ctrl-C ends it)", "shortage")
        final = none_left(none, error, f"for {duration_text(now - self._short_since)}")
        final.__cause__ = error
        self._wait_or_bar(patience_s, final)

    def _wait_or_bar(self, patience_s: float, error: CapacityError) -> None:
        """While nothing runs, wait so long."""
        now = self._clock.monotonic()
        self._short_since = now if self._short_since is None else self._short_since
        if now - self._short_since > patience_s:
            self._barred = f"{error}; {error.next_step}"
            self._refusal = error

    def _warn(self, text: str, about: str = "") -> None:
        """Once `about` something, or once in these words: it is tried again and again."""
        if (about or text) not in self._said:
            self._said.add(about or text)
            self._observe(Note(text, "warning"))
