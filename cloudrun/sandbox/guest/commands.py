"""The commands of a unit that must not be the host's: systemctl, shutdown and their kin, and sudo.

They are small shell scripts, mounted over the host's own wherever those are, and linked in /usr/local/bin besides.
"""

from __future__ import annotations

import os

from cloudrun.sandbox.guest import disk, kernel

POWER = ("systemctl", "shutdown", "poweroff", "reboot", "halt", "init", "telinit", "service")
_PLACES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
FOLDER = "/run/cloudrun"
SOCKET = "init.sock"  # in FOLDER
_SCRIPTS = f"{FOLDER}/bin"
_CLIENT = f"{FOLDER}/systemctl.py"

_POWER_SCRIPT = """#!/bin/sh
exec '{python}' -IS '{client}' "${{0##*/}}" "$@"
"""

# Every process of a unit is its user 0 already; what is left of sudo is its command line.
_SUDO_SCRIPT = """#!/bin/sh
home=/root user=root shell=
while [ $# -gt 0 ]; do
    case $1 in
        -u|--user) user=$2; shift 2 ;;
        -u*) user=${1#-u}; shift ;;
        --user=*) user=${1#--user=}; shift ;;
        -p|-g|-C|-D|-R|-T|-h|-r|-t) shift 2 ;;
        -i|--login) shell=login; shift ;;
        -s|--shell) shell=plain; shift ;;
        -v|-k|-K|-l|--validate|--reset-timestamp|--list) [ $# -gt 1 ] && { shift; continue; }; exit 0 ;;
        --) shift; break ;;
        -*) shift ;;
        *=*) export "$1"; shift ;;
        *) break ;;
    esac
done
case $user in
    root|'#0') ;;
    "$(id -un)") home=$(eval echo "~$user") ;;
    *) echo "sudo: user $user: not emulated in the sandbox" >&2; exit 1 ;;
esac
export HOME="$home" USER="$user" LOGNAME="$user" SUDO_USER="$(id -un)" SUDO_UID=0 SUDO_GID=0
[ "$shell" = login ] && cd "$HOME"
[ -n "$shell" ] && [ $# -gt 0 ] && exec "${SHELL:-/bin/sh}" -c "$*"
[ -n "$shell" ] && exec "${SHELL:-/bin/sh}"
[ $# -gt 0 ] || { echo "usage: sudo [-u user] command" >&2; exit 1; }
exec "$@"
"""

_CLIENT_SCRIPT = '''"""systemctl, shutdown, reboot ... as a request to PID 1. Arguments: its name, and its own."""
import json, os, re, socket, sys, time

def ask(*words):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            os.chdir(os.path.dirname(__file__))
            client.connect("init.sock")
            client.sendall(json.dumps(words).encode() + b"\\n")
            answer = json.loads(client.makefile("rb").readline() or b'{"code": 0, "out": "", "err": ""}')
        except OSError as error:
            sys.exit("the machine does not answer: %s" % error)
    sys.stdout.write(answer["out"])
    sys.stderr.write(answer["err"])
    sys.exit(answer["code"])

name, words = sys.argv[1], sys.argv[2:]
if name == "systemctl":
    ask(*words)
if name == "service" and len(words) == 2:
    ask({"status": "is-active"}.get(words[1], words[1]), words[0])
if name in ("init", "telinit") and words in (["0"], ["6"]):
    ask("poweroff" if words == ["0"] else "reboot")
if name in ("poweroff", "halt", "reboot"):
    ask("reboot" if name == "reboot" or "--reboot" in words else "poweroff")
if name == "shutdown":
    if "-c" in words:
        sys.exit("shutdown: -c: not emulated in the sandbox")
    verb = "reboot" if "-r" in words or "--reboot" in words else "poweroff"
    moments = [word for word in words if not word.startswith("-")]
    delay = re.fullmatch(r"\\+?(\\d+)", moments[0]) if moments else re.fullmatch(r"\\+?(\\d+)", "1")
    if moments and moments[0] != "now" and not delay:
        sys.exit("shutdown: %s: not emulated in the sandbox" % moments[0])
    if delay and int(delay[1]) > 0:
        if os.fork():
            sys.exit(0)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for handle in range(3):
            os.dup2(null, handle)
        time.sleep(60 * int(delay[1]))
    ask(verb)
sys.exit("%s %s: not emulated in the sandbox" % (name, " ".join(words)))
'''


def install(python: str) -> None:
    """Put the commands in place of the host's own. Needs to be on the unit's own root, and the right to mount."""
    scripts = write("", disk.in_unit(python), _SUDO_SCRIPT)
    covered: set[str] = set()
    for place in _PLACES:
        for name in scripts:
            target = os.path.realpath(f"{place}/{name}")
            # Only a file of one of these names: a busybox that is all of them at once must stay what it is.
            if os.path.isfile(target) and os.path.basename(target) in scripts and target not in covered:
                covered.add(target)
                kernel.bind(f"{_SCRIPTS}/{os.path.basename(target)}", target)


def write(prefix: str, python: str, sudo: str) -> tuple[str, ...]:
    """Write the commands below `prefix`, with links in its /usr/local/bin. Returns their names."""
    client = prefix + _CLIENT
    disk.write(client, _CLIENT_SCRIPT.encode())
    os.mkdir(prefix + _SCRIPTS)
    power = _POWER_SCRIPT.format(python=python, client=client)
    scripts = {**dict.fromkeys(POWER, power), "sudo": sudo}
    for name, text in scripts.items():
        script = f"{prefix}{_SCRIPTS}/{name}"
        disk.write(script, text.encode(), 0o755)
        link = f"{prefix}/usr/local/bin/{name}"
        if not os.path.lexists(link):
            os.symlink(script, link)
    return tuple(scripts)
