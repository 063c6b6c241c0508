"""Scripts of which a fork must make what `python script.py` makes of them."""

from __future__ import annotations

# name -> script; what it prints must be the same in both ways, and so must how it ends
SCRIPTS = {
    "arguments, flags and names": """
        import sys, os
        print(__name__, __file__, __doc__, __package__, __spec__, __builtins__, sys.argv, sys.orig_argv)
        print(sys.path, sys.flags, sys.executable, sys.prefix, sys.warnoptions, sys._xoptions, sys.dont_write_bytecode)
        print(type(__loader__), __loader__.name, __loader__.path, sorted(globals()))
        print(sys.stdin, sys.stdout, sys.stderr, sys.stdout.errors, sys.stderr.errors, sys.stdout.line_buffering)
        print(sys.stdout.write_through, type(sys.stdout.buffer), os.getcwd(), sys.getrecursionlimit())
        print([name for name in sys.modules if "cloudrun" in name], sys.modules["__main__"].__dict__ is globals())
        print([name for name in sys.path_importer_cache if "cloudrun" in name], hasattr(sys, "last_value"))
        print(sys.excepthook is sys.__excepthook__, sys.exc_info(), sys.stdin.read())
        """,
    "process": """
        import os, signal
        print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), oct(os.umask(0)))
        print({number: signal.getsignal(number) for number in sorted(signal.valid_signals())})
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.set_wakeup_fd(-1), signal.alarm(0))
        print(sorted(os.listdir("/proc/self/fd"))[:-1], [os.readlink(f"/proc/self/fd/{n}") for n in range(3)])
        print(open("/proc/self/comm").read(), len(os.listdir("/proc/self/task")))
        print(open("/proc/self/cmdline").read().rstrip(chr(0)).replace(chr(0), " "))
        """,
    "environment": """
        import os, subprocess, sys, tempfile
        import sklearn
        print(sorted(os.environ.items()))
        print(subprocess.run(["env"], capture_output=True, text=True).stdout.count("VIRTUAL_ENV"))
        print(tempfile.gettempdir())
        print(subprocess.run([sys.executable, "-c", "import sys; print(sys.path, sys.flags)"]))
        """,
    "pythonpath": "import sys; print(sys.path); import helper; print(helper.__file__)",
    "prints to both": """
        import sys
        print("out"); print("err", file=sys.stderr); sys.stdout.buffer.write(bytes([255, 10]))
        print("\\u00e9\\U0001f600")
        """,
    "exception": """
        def f():
            g()
        def g():
            raise ValueError("no")
        f()
        """,
    "chained exception": """
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise RuntimeError("outer") from error
        """,
    "exception without a frame of its own": "raise Exception",
    "exit 3": "import sys; sys.exit(3)",
    "exit None": "import sys; sys.exit()",
    "exit text": "import sys; sys.exit('bad luck')",
    "exit 256": "import sys; sys.exit(256)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit True": "import sys; sys.exit(True)",
    "raised SystemExit with a tuple": "raise SystemExit((1, 2))",
    "os._exit": "import os; print('x'); os._exit(7)",
    "abort": "import os; os.abort()",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(60)",
    "keyboard interrupt": "import atexit; atexit.register(print, 'end'); raise KeyboardInterrupt",
    "interrupt from outside": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "excepthook": """
        import sys
        sys.excepthook = lambda *error: print(error[:2], error[2].tb_frame.f_code.co_name, error[2].tb_next)
        raise ValueError("x")
        """,
    "excepthook that fails": """
        import sys
        def hook(*_):
            raise KeyError("hook")
        sys.excepthook = hook
        raise ValueError("x")
        """,
    "excepthook that exits": """
        import sys
        sys.excepthook = lambda *_: sys.exit(9)
        raise ValueError("x")
        """,
    "excepthook that is gone": "import sys; del sys.excepthook; raise ValueError('x')",
    "the last error": """
        import atexit, sys
        atexit.register(lambda: print(sys.last_type, sys.last_value, sys.last_traceback.tb_lineno))
        raise ValueError("x")
        """,
    "syntax error": "print('never')\nx = = 1\n",
    "indentation error": "if True:\nprint(1)\n",
    "syntax warning": "import sys\nprint('\\d')\nx = 1 is 1\nassert (x, 'always')\n",
    "nul byte": "print(1)\0\n",
    "empty": "",
    "no newline at the end": "print(1)",
    "future": """
        from __future__ import annotations
        def f(x: undefined_name) -> None: ...
        print(f.__annotations__, __annotations__ if "__annotations__" in globals() else None)
        """,
    "no future of ours": """
        def f(x: int) -> None: ...
        print(f.__annotations__)
        """,
    "main": """
        def work():
            return 42
        if __name__ == "__main__":
            print(work())
        """,
    "pickle of a class of main": """
        import pickle
        class Thing:
            def __init__(self): self.x = 1
        data = pickle.dumps(Thing())
        print(data, pickle.loads(data).x, Thing.__module__, Thing)
        """,
    "atexit order": """
        import atexit, logging, weakref
        class A:
            def __del__(self): print("deleted")
        a = A()
        atexit.register(print, "first"); atexit.register(print, "second")
        weakref.finalize(a, print, "finalized")
        """,
    "globals are deleted": """
        class A:
            def __init__(self, name): self.name = name
            def __del__(self): print("deleted", self.name)
        a = A("plain"); b = [A("in a cycle")]; b.append(b)
        """,
    "globals are deleted after an exception": """
        class A:
            def __del__(self): print("deleted")
        a = A()
        def f(): raise ValueError
        f()
        """,
    "globals are deleted after an exit": """
        import sys
        class A:
            def __del__(self): print("deleted")
        a = A()
        sys.exit(4)
        """,
    "file is gone at the end": "import atexit; atexit.register(lambda: print('__file__' in globals(), len(globals())))",
    "atexit that fails": "import atexit; atexit.register(lambda: 1 / 0)",
    "thread that outlives main": """
        import threading, time
        def work():
            time.sleep(0.3); print("thread", threading.main_thread().is_alive(), threading.current_thread().name)
        threading.Thread(target=work).start()
        print(threading.main_thread().name, threading.current_thread() is threading.main_thread())
        """,
    "daemon thread": """
        import threading, time
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print("end")
        """,
    "exception in a thread": """
        import threading
        t = threading.Thread(target=lambda: 1 / 0, name="t"); t.start(); t.join(); print("end")
        """,
    "executor": """
        from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor
        with ThreadPoolExecutor(2) as pool: print(list(pool.map(abs, range(3))))
        if __name__ == "__main__":
            with ProcessPoolExecutor(2) as pool: print(list(pool.map(abs, range(3))))
        """,
    "multiprocessing": """
        import multiprocessing, os, sys
        class Thing:
            def __init__(self, x): self.x = x
        def work(thing):
            return Thing(thing.x ** 2)
        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    print(method, [thing.x for thing in pool.map(work, map(Thing, range(4)))])
            print(multiprocessing.current_process(), multiprocessing.parent_process())
        """,
    "spawned process": """
        import multiprocessing, os, sys
        def work():
            print(__name__, sys.argv, sys.path, os.getcwd(), __file__)
        if __name__ == "__main__":
            for method in ("spawn", "forkserver"):
                process = multiprocessing.get_context(method).Process(target=work)
                process.start(); process.join(); print(process.exitcode)
        """,
    "os.fork": """
        import os, sys
        pid = os.fork()
        if not pid: sys.exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        sys.exit(6)
        """,
    "joblib": """
        from joblib import Parallel, delayed
        def square(x): return x * x
        if __name__ == "__main__":
            print(Parallel(n_jobs=2)(delayed(square)(i) for i in range(4)))
            print(Parallel(n_jobs=2, backend="multiprocessing")(delayed(square)(i) for i in range(4)))
            print(Parallel(n_jobs=2, prefer="threads")(delayed(square)(i) for i in range(4)))
        """,
    "scikit-learn": """
        import numpy as np
        from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score
        X = np.random.RandomState(0).rand(400, 6); y = X[:, 0] > 0.5
        print(RandomForestClassifier(10, n_jobs=2, random_state=0).fit(X, y).score(X, y))
        print(HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(X, y).score(X, y))
        print(cross_val_score(LogisticRegression(), X, y, cv=2))
        print((np.ones((200, 200)) @ np.ones((200, 200))).sum())
        """,
    "seeded": """
        import numpy, random
        numpy.random.seed(1); random.seed(1)
        print(numpy.random.rand(3), numpy.random.default_rng(1).random(3), random.random())
        """,
    "numbers of threads": """
        import threadpoolctl, numpy, sklearn, scipy.linalg, os
        infos = threadpoolctl.threadpool_info()
        print(sorted((i["internal_api"], i["num_threads"]) for i in infos if i["internal_api"] != "openmp"))
        """,
    "logging": """
        import logging
        logging.warning("early"); logging.basicConfig(); logging.getLogger("x").error("late %s", 1)
        logging.info("hidden")
        """,
    "warnings": """
        import warnings
        warnings.warn("here"); warnings.warn("out", stacklevel=2); warnings.warn("far out", stacklevel=9)
        warnings.warn("old", DeprecationWarning)
        def f(): warnings.warn("in", stacklevel=2)
        f()
        print([f[:3] for f in warnings.filters if f[3] == "__main__"][:0])
        """,
    "unraisable": """
        class A:
            def __del__(self): raise ValueError("del")
        A(); a = A()
        """,
    "recursion": """
        import sys
        def f(): f()
        try: f()
        except RecursionError as error: print(error)
        """,
    "imports of its own": """
        import helper, package.part
        print(helper.__file__, package.part.__name__, helper.main)
        """,
    "reads itself": "print(open(__file__).read()); import inspect\ndef f(): pass\nprint(inspect.getsource(f))",
    "asyncio": """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_exec("echo", "hi", stdout=asyncio.subprocess.PIPE)
            print(await process.communicate())
        asyncio.run(main())
        """,
    "signal handler": """
        import os, signal, time
        signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
        os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.05)
        """,
    "closed stdout": "import sys; sys.stdout.close()",
    "faulthandler": "import faulthandler; faulthandler.enable(); print(faulthandler.is_enabled())",
    "importlib": """
        import importlib, pkgutil, zipimport, subprocess, signal, json, socket, traceback, ctypes, threading, tempfile
        importlib.reload(json); print(zipimport.zipimporter)
        print(subprocess.run(["true"]).returncode, ctypes.sizeof(ctypes.c_int), json.dumps([1]))
        """,
}
HELPERS = {
    "helper.py": "import __main__; main = __main__.__name__\n",
    "lib/helper.py": "x = 1\n",
    "package/__init__.py": "",
    "package/part.py": "",
}
