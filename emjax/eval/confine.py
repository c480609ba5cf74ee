"""Runs one Python program where it can do no harm. A script of its own, started as `python -I -S
confine.py`; Linux only.

On stdin: {"program", "root", "prefix", "python", "uid", "seconds", "memory", "disk", "processes"}
as JSON. `root` is an empty directory of the caller's. On stdout: one word, what came of it:

passed    the program ran to its end
failed    it raised, or ended before its end
timeout   it took longer than `seconds`
memory    it ran into the memory limit

Anything that keeps the confinement from being complete ends with exit code 3 and the reason on
stderr, before the program has run. The program gets: namespaces of its own for processes, mounts,
network (none, not even loopback) and, without root, users; a file system that holds the system's
libraries and Python, read-only, and an empty directory of `disk` bytes; no privileges, and no way
to gain any; limits on address space, CPU time, file size, open files and processes. It sees no
other process and no file of the user's. When it is over, whatever it started is killed with the
namespace.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

_NS = {"mount": 0x00020000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY = 442, -100, 0x8000, 0x1
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38
_HIGH = 100  # a file descriptor beyond those that are in use
_LIBRARIES = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
# Runs in the confined process. The mark says that the program came to its end. It is random, new
# for each program, and comes through a pipe that is closed before the program begins, so that it is
# in no argument, variable or file. A program that searches the memory of its own process, or the
# frames below it, can still find it: nothing in one process is hidden from code that runs there.
_WRAPPER = """\
def run():
    import os
    mark = os.read(0, 64)
    os.dup2(1, 0)
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    except MemoryError:
        os._exit(77)
    os.write(3, mark)
    os._exit(0)
run()
"""

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _call(what, result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source, target, kind, flags, data=None):
    encoded = [x and x.encode() for x in (source, target, kind)]
    _call(f"mount {target}", _libc.mount(*encoded, ctypes.c_ulong(flags), data and data.encode()))


def _read_only(path, recursive, on):
    attributes = _Attributes(_RDONLY if on else 0, 0 if on else _RDONLY, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    flags = _AT_RECURSIVE if recursive else 0
    done = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), size)
    _call(f"mount_setattr {path}", done)


def _unshare(uid):
    """Namespaces; without root also one for users, in which we stay who we are and only get the
    right to mount."""
    me, group = os.getuid(), os.getgid()
    flags = _NS["mount"] | _NS["ipc"] | _NS["pid"] | _NS["net"] | (_NS["user"] if uid is None else 0)
    _call("unshare", _libc.unshare(flags))
    if uid is None:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{me} {me} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{file}", "w") as out:
                out.write(text)


def _new_root(asked):
    """A root of its own at asked["root"], with asked["program"] in its one writable directory."""
    root = asked["root"]
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path in (*_LIBRARIES, asked["prefix"], "/dev/null", "/dev/urandom"):
        if not os.path.exists(path) or os.path.exists(root + path):
            continue
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
            continue
        if os.path.isdir(path):
            os.mkdir(root + path)
        else:
            open(root + path, "w").close()
        _mount(path, root + path, None, _BIND | _REC)
    work = root + "/box"
    os.mkdir(work)
    _mount("tmpfs", work, "tmpfs", _NOSUID | _NODEV, f"size={asked['disk']},mode=777")
    with open(work + "/program.py", "w", encoding="utf-8") as file:
        file.write(asked["program"])
    _read_only(root, True, True)
    _read_only(work, False, False)
    os.chroot(root)
    os.chdir("/box")


def _become(asked, mark, end):
    """Gives up every privilege, takes on the limits, and turns into the program. Never returns.
    mark: a pipe from which the wrapper gets it; end: the pipe that it goes into."""
    null = os.open("/dev/null", os.O_RDWR)
    for number, to in ((mark, 0), (null, 1), (null, 2), (end, 3)):
        os.dup2(number, to)
    os.closerange(4, 4096)
    if asked["uid"] is not None:
        os.setgroups([])
        os.setresgid(asked["uid"], asked["uid"], asked["uid"])
        os.setresuid(asked["uid"], asked["uid"], asked["uid"])
    _call("no_new_privs", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    seconds = int(asked["seconds"]) + 1
    for limit, value in (
        (resource.RLIMIT_AS, asked["memory"]), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, asked["disk"]),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, asked["processes"]),
    ):  # fmt: skip
        resource.setrlimit(limit, (value, value))
    # exec takes the capabilities of the user namespace away, since we are not its root.
    os.execve(asked["python"], [asked["python"], "-I", "-S", "-B", "-c", _WRAPPER], {"PATH": "/usr/bin", "HOME": "/box"})


def _first(asked, answer):
    """The first process of the new namespace: with its end the kernel ends all others in it."""
    _call("pdeathsig", _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    _new_root(asked)
    # same user or not, no other process may read this one's memory, where the mark is
    _call("dumpable", _libc.prctl(_DUMPABLE, 0, 0, 0, 0))
    mark, (given, give), (out, end) = os.urandom(32), os.pipe(), os.pipe()
    os.write(give, mark)
    child = os.fork()
    if not child:
        try:
            os.dup2(end, _HIGH + 1)
            os.dup2(given, _HIGH)
            _become(asked, _HIGH, _HIGH + 1)
        finally:
            os._exit(78)  # the program did not start
    for number in (given, give, end):
        os.close(number)
    stop, status = time.monotonic() + asked["seconds"], None
    while status is None and time.monotonic() < stop:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
        else:
            time.sleep(0.005)
    if status == 78:
        raise OSError("the program could not be started: is this Python readable for other users, and is it below its prefix?")
    os.set_blocking(out, False)
    try:
        ended = os.read(out, 64) == mark
    except BlockingIOError:  # a process that it left behind holds the pipe
        ended = False
    word = "timeout" if status is None or status == -signal.SIGXCPU else "memory" if status == 77 else "failed"
    os.write(answer, b"passed" if ended and status == 0 else word.encode())


def main():
    asked = json.load(sys.stdin)
    answer = os.dup(1)
    try:
        _unshare(asked["uid"])
        first = os.fork()
        if not first:
            try:
                _first(asked, answer)
            except OSError as error:
                sys.stderr.write(f"{error}")
                sys.stderr.flush()
                os._exit(3)
            os._exit(0)
        _, code = os.waitpid(first, 0)
        os._exit(os.waitstatus_to_exitcode(code) & 255)
    except OSError as error:
        sys.stderr.write(f"{error}")
        sys.stderr.flush()
        os._exit(3)


if __name__ == "__main__":
    main()
