"""The Linux system calls that make a container and that Python does not offer, by ctypes.

Numbers and flags are those of include/uapi/linux/{mount,sched,prctl,capability,reboot}.h; system calls above 424
have the same number on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

ATTR_RDONLY = 0x1
ATTR_NOSUID = 0x2
ATTR_NODEV = 0x4

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1

_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522

# What "root" may still do on a machine of its own: own files, signal, change identity, chroot, reboot. Left out above
# all: CAP_SYS_ADMIN, with which the read-only mounts of the host's files could be made writable again.
KEPT_CAPABILITIES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 18, 22})

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _LandlockRuleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("handled_access_fs", "handled_access_net", "scoped")]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), what)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_namespace(handle: int) -> None:
    """Move this thread into the namespace that the descriptor is of."""
    _checked(_libc.setns(ctypes.c_int(handle), ctypes.c_int(0)), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    result = _libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(flags), arguments[3])
    _checked(result, f"mount {kind or ''} on {target}")


def bind(source: str, target: str) -> None:
    """Let the file `source` be seen at `target`, which exists."""
    mount(source, target, None, MS_BIND)


def detach(target: str) -> None:
    """Unmount `target` and all below it, as soon as nobody uses them."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), f"unmount {target}")


def pivot_root_here() -> None:
    """Make the working directory, a mount point, the root. The old root is stacked on it: see pivot_root(2)."""
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    detach(".")
    os.chdir("/")


def clone_tree(place: int) -> int:
    """A descriptor of a private copy of the mounts at `place` (opened with O_PATH), attached nowhere yet."""
    return _syscall(
        _SYS_OPEN_TREE,
        "open_tree",
        ctypes.c_int(place),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | _AT_RECURSIVE),
    )


def restrict_tree(tree: int, attributes: int) -> None:
    """Set mount attributes on a cloned tree and on every mount below it. Linux 5.12."""
    wanted = _MountAttr(attr_set=attributes)
    _syscall(
        _SYS_MOUNT_SETATTR,
        "mount_setattr",
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_AT_EMPTY_PATH | _AT_RECURSIVE),
        ctypes.byref(wanted),
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    )


def attach_tree(tree: int, target: int) -> None:
    """Mount a cloned tree on what the descriptor `target` (opened with O_PATH) refers to."""
    _syscall(
        _SYS_MOVE_MOUNT,
        "move_mount",
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_int(target),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH),
    )


def die_with_parent(signal_number: int) -> None:
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl")


def forbid_new_privileges() -> None:
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def keep_capabilities(kept: Iterable[int]) -> None:
    """Give up every other capability, now and for whatever is executed later."""
    kept = frozenset(kept)
    last = int(_read("/proc/sys/kernel/cap_last_cap"))
    for capability in range(last + 1):
        if capability not in kept:
            _checked(_libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0), "prctl")
    mask = sum(1 << capability for capability in kept)
    header = _CapHeader(version=_CAPABILITY_VERSION_3, pid=0)
    data = (_CapData * 2)(_CapData(mask, mask, 0), _CapData(0, 0, 0))  # every kept capability is below 32
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def leave_abstract_sockets() -> bool:
    """Lose the way to abstract Unix sockets of processes outside, which a shared network leaves open: a desktop's X
    server has one. Needs Linux 6.12 with Landlock, and no new privileges; returns whether it could be done."""
    wanted = _LandlockRuleset(scoped=_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    try:
        ruleset = _syscall(_SYS_LANDLOCK_CREATE_RULESET, "landlock", ctypes.byref(wanted), size, ctypes.c_uint(0))
    except OSError:
        return False
    try:
        _syscall(_SYS_LANDLOCK_RESTRICT_SELF, "landlock", ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return True


def leave_session_keyring() -> None:
    """Hold no key of the daemon's session any more."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        with contextlib.suppress(OSError):  # a kernel without keyrings, or a filter that forbids the call
            _syscall(number, "keyctl", ctypes.c_int(_KEYCTL_JOIN_SESSION_KEYRING), None)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as stream:
        return stream.read()
