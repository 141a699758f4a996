"""A small cache whose values are made once, however many visitors ask at the same time."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """The `capacity` most recently used values."""

    def __init__(self, capacity: int) -> None:
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._capacity = capacity

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `key`, made by `make` where it is not kept; an error of `make` is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            value = make()
            self.put(key, value)
            return value

    def peek(self, key: Hashable) -> T | None:
        """The value if it is kept; makes nothing."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Keep a value, and drop the least recently used beyond the capacity."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            self._making.pop(key, None)
            while len(self._values) > self._capacity:
                self._values.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        """Forget a value, so that it is made again."""
        with self._lock:
            self._values.pop(key, None)
