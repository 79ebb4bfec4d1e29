"""``lorakit``, and ``python -m lorakit`` where that script is not on the path: the command line as a process."""

from .cli._process import run

if __name__ == "__main__":
    run()
