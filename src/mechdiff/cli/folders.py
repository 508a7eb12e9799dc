"""These verbs say which runs there are, how far they have come, and open their pages. Everything heavy is imported inside the verb."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mechdiff.cli.flags import COMPUTE, AsJson, escaped, say

PAGES = ("report.html", "compare.html", "index.html")
"""What a folder's page may be called."""
RUNS = Path("runs")


def view(
    folder: Annotated[Path, typer.Argument(help="A run's, a comparison's or a scan's folder, or a page.", show_default=False)],
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the folder at this machine's own address until Ctrl-C, for a browser elsewhere.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of --serve; 0: any that is free.", rich_help_panel=COMPUTE)] = 0,
) -> None:
    """Open a run's page in the browser. Prints the page's path, also where no browser can be opened.

    Examples:
      mechdiff view runs/demo
      mechdiff view runs/demo --serve --port 8000
    """
    page = page_of(folder)
    if serve:
        return _serve(page, port)
    print(page)
    if not opened(page):
        say("no browser can be opened here: open that file, or use --serve and a browser on another machine")


def page_of(folder: Path) -> Path:
    """The page of a run, a comparison or a scan. Raises RunError where there is none."""
    from mechdiff.errors import RunError

    if folder.is_file() and folder.suffix == ".html":
        return folder
    for name in PAGES:
        if (folder / name).is_file():
            return folder / name
    if not folder.exists():
        raise RunError(f"{folder}: no such folder. `mechdiff ls` lists the runs there are.")
    made = " Make it with: mechdiff report RUN." if (folder / "manifest.json").is_file() else " `mechdiff ls` lists the runs there are."
    raise RunError(f"{folder}: no page lies here ({', '.join(PAGES)}).{made}")


def opened(page: Path) -> bool:
    """Whether a browser with a window was asked to show the page: none is without a screen, where only text browsers would come."""
    import webbrowser

    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    try:
        return screen and webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        return False


def _serve(page: Path, port: int) -> None:
    """The page's folder over HTTP at 127.0.0.1, until Ctrl-C."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from mechdiff.errors import MachineError

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(page.parent)))
    except OSError as error:
        raise MachineError(
            f"--port {port}: cannot be served at ({error.strerror}). Give another port, or 0 for any that is free."
        ) from error
    with server:
        print(f"http://127.0.0.1:{server.server_port}/{page.name}", flush=True)
        say(f"from another machine: ssh -L {server.server_port}:127.0.0.1:{server.server_port} THIS-MACHINE; Ctrl-C ends it")
        server.serve_forever()


def ls(
    folder: Annotated[Path, typer.Argument(help="A folder of runs; they may lie one or two folders deep.")] = RUNS,
    json: AsJson = False,
) -> None:
    """Which runs are there? Their pair, state, date, D (KL of the next token, nats) and size on disk, the newest first.

    Examples:
      mechdiff ls
      mechdiff ls runs --json
    """
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.listing import listed
    from mechdiff.cli.printing_runs import show_runs

    found = listed(folder)
    if json:
        print_json("ls", {"folder": str(folder), "runs": found})
    elif found:
        show_runs(found, folder)
    else:
        say(escaped(f"{folder}: no runs. Begin one with: mechdiff run BASE TUNED"))


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of a run: running, dead or finished.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the run ends; exit code 1 where it died before its end.")] = False,
    json: AsJson = False,
) -> None:
    """How far has a run come? Read from its folder, while it runs or after it died.

    Examples:
      mechdiff status runs/demo
      mechdiff status runs/demo --watch
      mechdiff status runs/demo --json
    """
    from mechdiff.cli.json_output import print_json
    from mechdiff.cli.printing_runs import show_status, watched
    from mechdiff.store.tables import read_status

    found = watched(lambda: read_status(folder), time.sleep, silent=json) if watch else read_status(folder)
    if json:
        print_json("status", status_data(folder, found))
    elif not watch or found.state != "running":
        show_status(found)
    raise typer.Exit(1 if watch and found.state != "finished" else 0)


def status_data(folder: Path, found: Any) -> dict[str, Any]:
    """A run's state as plain data."""
    stages = [{"stage": name, "done": n, "cells": of, "seconds": seconds} for name, (n, of, seconds) in found.stages.items()]
    page = folder / "report.html"
    return {
        "folder": str(folder), "state": found.state, "share": found.share, "seconds_left": found.left, "stages": stages, "log": found.log,
        "page": str(page) if page.is_file() else None,
    }  # fmt: skip
