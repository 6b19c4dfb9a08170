"""Reading and decoding ahead of the one who uses the images, in threads, within a memory budget."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from engine.pool.address import parse_address
from engine.pool.reading import RETRY_AFTER_S, read_image
from engine.pool.storage import Options
from schemas.errors import ImageError, TransientError
from schemas.records import PoolImage, PoolItem
from schemas.settings import PoolSettings

Outcome = PoolImage | tuple[PoolItem, ImageError]

_LOCAL_WORKERS, _REMOTE_WORKERS = 2, 16
_AHEAD_PER_WORKER = 4
_DECODING_BYTES_PER_PIXEL = 8  # Pillow's own image, a conversion, and the RGB array


def prefetch(
    items: Iterable[PoolItem],
    settings: PoolSettings,
    workers: int | None = None,
    storage_options: Options = None,
    *,
    max_bytes: int = 1 << 30,
    give_up: bool = False,
) -> Iterator[Outcome]:
    """Read and decode images ahead, in threads; they come out in the order of the items.

    Args:
        items: taken lazily, a few more than are being worked on.
        workers: threads; None = 2 for local files (decoding is the work), 16 for anything else
            (waiting is).
        storage_options: as for `list_pool`.
        max_bytes: decoded pixels held ahead, with the memory decoding takes. One image larger than
            this is still decoded, alone, when it is its turn.
        give_up: where the storage keeps failing for a file, yield `ImageError` `unreachable` for it
            instead of raising.

    Yields:
        `PoolImage`, or `(item, ImageError)` for a file that cannot be used.

    Raises:
        TransientError: the storage still failed after three more tries over 2.6 s.
        ConfigError: the storage refuses the credentials.
    """
    items = iter(items)
    first = next(items, None)
    if first is None:
        return
    if workers is None:
        workers = _LOCAL_WORKERS if parse_address(first.uri).on_this_machine else _REMOTE_WORKERS
    budget = _Budget(max_bytes)
    numbered = enumerate(itertools.chain([first], items))
    waiting: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    try:
        while True:
            for turn, item in itertools.islice(numbered, workers * _AHEAD_PER_WORKER - len(waiting)):
                job = (item, settings, storage_options, budget, turn, give_up)
                waiting.append(pool.submit(_read_patiently, *job))
            if not waiting:
                return
            yield _hand_over(waiting, budget)
    finally:
        budget.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _hand_over(waiting: deque[Future[Outcome]], budget: _Budget) -> Outcome:
    """The next outcome; nothing here keeps it alive while its user works."""
    outcome = waiting.popleft().result()
    budget.next_turn()
    return outcome


def _read_patiently(
    item: PoolItem,
    settings: PoolSettings,
    storage_options: Options,
    budget: _Budget,
    turn: int,
    give_up: bool,
) -> Outcome:
    def wait_for_memory(height: int, width: int) -> None:
        budget.reserve(turn, height * width * _DECODING_BYTES_PER_PIXEL)

    for delay_s in (*RETRY_AFTER_S, None):
        try:
            budget.reserve(turn, item.file_bytes or 0)
            image = read_image(item, settings, storage_options, on_size=wait_for_memory)
            budget.reserve(turn, image.pixels.nbytes)
            return image
        except ImageError as error:
            budget.reserve(turn, 0)
            return item, error
        except TransientError as error:
            budget.reserve(turn, 0)
            if delay_s is None and give_up:
                return item, ImageError("unreachable", str(error))
            if delay_s is None or budget.closed.wait(delay_s):
                raise
    raise AssertionError("the last try returns or raises")


class _Budget:
    """Bytes that images not yet handed over may take. The one whose turn it is never waits."""

    def __init__(self, max_bytes: int) -> None:
        self.closed = threading.Event()
        self._max_bytes = max_bytes
        self._held: dict[int, int] = {}
        self._turn = 0
        self._changed = threading.Condition()

    def reserve(self, turn: int, size: int) -> None:
        """Hold `size` bytes for this image instead of what it held; waits until they are free.

        Raises:
            CancelledError: nobody is there to take the image any more.
        """
        with self._changed:
            before = self._held.get(turn, 0)
            if size > before:
                self._changed.wait_for(lambda: self.closed.is_set() or self._may_hold(turn, size))
            if self.closed.is_set():
                raise CancelledError
            self._held[turn] = size
            self._changed.notify_all()

    def next_turn(self) -> None:
        """The image whose turn it was has left."""
        with self._changed:
            self._held.pop(self._turn, None)
            self._turn += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Send away everyone who waits, and who comes to wait."""
        with self._changed:
            self.closed.set()
            self._changed.notify_all()

    def _may_hold(self, turn: int, size: int) -> bool:
        others = sum(held for number, held in self._held.items() if number != turn)
        return turn == self._turn or others + size <= self._max_bytes
