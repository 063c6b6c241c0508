"""The way to a unit: keys, one paramiko connection, the agent behind it. Nothing else imports paramiko."""

import sys

# paramiko can do without invoke, which it needs for "Match exec" in files that we never read, and whose import takes
# as long as paramiko's own (70 ms). An entry that is None makes `import invoke` fail, here and nowhere else.
_ABSENT = "invoke" not in sys.modules
if _ABSENT:
    sys.modules["invoke"] = None  # type: ignore[assignment]
try:
    import paramiko  # noqa: F401
finally:
    if _ABSENT:
        del sys.modules["invoke"]
