"""What is said to whoever interrupts a command before it has launched anything."""

from __future__ import annotations

import pytest

from cloudrun.core.errors import UsageError, before_launch


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_is_told_that_nothing_was_launched(interruption: BaseException) -> None:
    with pytest.raises(type(interruption)) as caught, before_launch():
        raise interruption
    assert caught.value is interruption
    assert caught.value.__notes__ == ["nothing was launched: nothing runs, and nothing is billed"]


def test_an_error_goes_on_as_it_is() -> None:
    with pytest.raises(UsageError) as caught, before_launch():
        raise UsageError("no")
    assert not hasattr(caught.value, "__notes__")
