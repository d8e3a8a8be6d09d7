"""The command line's ``ray-pcasgd watch``."""

import contextlib
from typing import Annotated

import typer

from ray_pcasgd.cli.control import Address


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(watch)


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its remote location.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page's address; 0: any free one.")] = 0,
    control: Annotated[
        bool, typer.Option("--control", help="Let the page also change a live run: delays of links, lost agents.")
    ] = False,
    address: Address = None,
) -> None:
    """Show a running run on a page of its own: progress, losses, staleness of every link, events."""
    from ray_pcasgd.cli.watch_server import WatchServer
    from ray_pcasgd.cli.watcher import Watcher

    watcher = Watcher(run, address)
    with WatchServer(port, lambda: watcher.page, watcher.send if control else None) as server:
        watcher.start()
        if watcher.why:
            print(f"{watcher.why}; the page shows what its folder has", flush=True)
        print(f"{server.address} shows {run}; Ctrl-C ends it", flush=True)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        finally:
            watcher.close()
