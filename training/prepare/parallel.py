"""One function over many items: in this process, in several, or on a ray cluster, with the same results."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from anycharv_core.errors import UserError
from training.workers import begin_worker

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2  # items handed out per worker, so that none waits for the next and none piles up


def run_all(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int = 0,
    ray: bool = False,
    gpus: float = 0,
) -> Iterator[Result]:
    """`function` of every item, as each is done: the order is the items' own only without workers.

    workers 0 or 1 runs in this process; more in as many fresh processes (spawned, because a forked one
    inherits locks that other threads hold), which end with this one even where it is killed; `ray` on every
    machine of the cluster that RAY_ADDRESS names, or on this one where it is not set, with `gpus` of a card
    for each call and `workers` calls at a time (0: as many as the cluster has processors). `function` and the
    items must pickle: give a function of a module, or functools.partial of one. What it holds on to, such as a
    loaded model behind functools.lru_cache, lives as long as its process, which serves many items.

    An exception in `function` is raised here, once nothing more is handed out; so `function` itself must
    turn what is wrong with one item into a result. Raises UserError where ray is not installed or cannot be
    reached, and where a worker process dies.
    """
    if ray:
        return _on_ray(function, iter(items), workers, gpus)
    if workers <= 1:
        return map(function, items)
    return _in_processes(function, iter(items), workers)


def _in_processes(function: Callable[[Item], Result], items: Iterator[Item], workers: int) -> Iterator[Result]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=begin_worker) as pool:
        try:
            pending = {pool.submit(function, item) for item in islice(items, AHEAD * workers)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(function, item) for item in islice(items, len(done))}
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "A worker process was ended from outside, mostly for lack of memory: run the same command "
                "again, with fewer workers; what is finished is kept."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _on_ray(
    function: Callable[[Item], Result], items: Iterator[Item], workers: int, gpus: float
) -> Iterator[Result]:
    ray = _connected()
    count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    # A task whose machine is lost is given to another one: the function must be safe to run twice.
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_call)
    shared = ray.put(function)
    pending = [task.remote(shared, item) for item in islice(items, AHEAD * count)]
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            pending += [task.remote(shared, item) for item in islice(items, len(done))]
            for reference in done:
                yield _result(ray, reference)
    finally:
        for reference in pending:
            ray.cancel(reference)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


def _connected() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs ray, which is not installed: pip install 'ray>=2.9'.") from None
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(f"The ray cluster cannot be reached: {str(error).splitlines()[0]}") from None
    return ray


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UserError(f"A ray worker was lost and its work could not be given to another: {error}") from None
