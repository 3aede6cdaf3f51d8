"""Run the same work on many images: in threads, in processes, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

from medstyle.errors import MissingPackage, ServiceError
from medstyle.jobs.progress import track

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Item = TypeVar("Item")
Result = TypeVar("Result")
Workers = int | str  # a number of local processes, or the address of a Dask scheduler


def each(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: Workers = 1, threads: int = 1
) -> Generator[Result]:
    """Yield ``function(item)`` for every item, in order, and report progress.

    If a worker dies, its unfinished work and the results that it has not yet returned are computed
    again by another one; ``function`` must therefore write the same files when it is repeated. It
    is sent to other processes, so it must be importable there.

    Args:
        function: the work; it changes nothing but its own files.
        items: its arguments.
        description: beginning of the progress lines.
        workers: 1 is this process with ``threads``; larger numbers are processes of one thread
            each; a text such as ``tcp://host:8786`` is a Dask scheduler whose workers run in this
            folder of a shared disk.
        threads: number of threads of this process, without other workers.

    Raises:
        UserError: Dask is not installed, or no scheduler answers at the address.
    """
    with ExitStack() as stack:
        if workers == 1:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            yield from track(pool.map(function, items), description, len(items))
            return
        try:
            from distributed import Client, LocalCluster
        except ImportError:
            raise MissingPackage(f'{description}: workers needs Dask: pip install "medstyle[cluster]"') from None
        cluster: object = workers
        if isinstance(workers, int):
            local = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, preload=["medstyle.jobs.startup"]
            )
            cluster = stack.enter_context(local)
        try:
            client = stack.enter_context(Client(cluster))
        except OSError:
            raise ServiceError(f"{description}: no Dask scheduler answers at {workers}") from None
        futures = client.map(partial(_caught, function), items, pure=False)
        for result, error in track((future.result() for future in futures), description, len(futures)):
            if error is not None:
                raise error
            yield result


def _caught(function: Callable[[Item], Result], item: Item) -> tuple[Result | None, Exception | None]:
    """Return an error instead of raising it.

    Dask would log it together with the item, which may name a patient.
    """
    try:
        return function(item), None
    except Exception as error:
        return None, error
