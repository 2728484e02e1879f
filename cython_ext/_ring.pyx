# cython: language_level=3
"""A bounded queue of Python objects without locks."""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint64_t

from sona_pg.errors import ConfigError

cdef extern from "ring.h":
    ctypedef struct sona_ring:
        uint64_t capacity
    sona_ring *sona_ring_new(uint64_t capacity) noexcept nogil
    void sona_ring_free(sona_ring *ring) noexcept nogil
    uint64_t sona_ring_size(sona_ring *ring) noexcept nogil
    uint64_t sona_ring_dropped(sona_ring *ring) noexcept nogil
    uint64_t sona_ring_taken(sona_ring *ring) noexcept nogil
    void sona_ring_refuse(sona_ring *ring, uint64_t count) noexcept nogil
    int sona_ring_push(sona_ring *ring, void *value) noexcept nogil
    void *sona_ring_pop(sona_ring *ring) noexcept nogil


cdef class Ring:
    """A bounded first-in, first-out queue. Pushing takes no lock, waits for nobody and allocates nothing.

    Parameters
    ----------
    capacity
        Most objects that it holds; at least 1.
    """
    cdef sona_ring *ring

    def __cinit__(self, capacity, *args, **kwargs):
        if not isinstance(capacity, int) or isinstance(capacity, bool) or not 1 <= capacity <= 1 << 24:
            raise ConfigError(f"capacity is {capacity!r}, expected a whole number from 1 to 2**24")
        self.ring = sona_ring_new(capacity)
        if self.ring == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef void *value
        if self.ring != NULL:
            value = sona_ring_pop(self.ring)
            while value != NULL:
                Py_DECREF(<object>value)
                value = sona_ring_pop(self.ring)
            sona_ring_free(self.ring)

    def push(self, value not None):
        """Append; False, and counted, if it is full."""
        Py_INCREF(value)
        if sona_ring_push(self.ring, <PyObject *>value):
            return True
        Py_DECREF(value)
        return self.refuse()

    def push_from(self, list values not None, Py_ssize_t start):
        """Append `values` from a place on, as far as there is room; the place of the first that was not taken.

        What was not taken is not counted as refused: it may be offered again.
        """
        cdef Py_ssize_t place, n = len(values)
        if not 0 <= start <= n:
            raise ConfigError(f"start is {start}, expected 0 to {n}")
        for place in range(start, n):
            value = values[place]
            if value is None:
                raise TypeError("a value is None: the ring could not tell it from nothing")
            Py_INCREF(value)
            if not sona_ring_push(self.ring, <PyObject *>value):
                Py_DECREF(value)
                return place
        return n

    def refuse(self, uint64_t count=1):
        """Count so many as refused; False."""
        sona_ring_refuse(self.ring, count)
        return False

    def pop(self):
        """The oldest object, or None."""
        cdef void *value = sona_ring_pop(self.ring)
        if value == NULL:
            return None
        result = <object>value
        Py_DECREF(result)
        return result

    def drain_into(self, target not None):
        """Append everything that is in it to a list or deque, in one call that no interrupt divides."""
        append = target.append
        # What is pushed meanwhile waits for the next call, so that this one ends.
        for _ in range(sona_ring_size(self.ring)):
            value = self.pop()
            if value is None:
                break
            append(value)

    def __len__(self):
        return sona_ring_size(self.ring)

    @property
    def capacity(self):
        """Most objects that it holds."""
        return self.ring.capacity

    @property
    def dropped(self):
        """How many were refused."""
        return sona_ring_dropped(self.ring)

    @property
    def taken(self):
        """How many were taken since the beginning."""
        return sona_ring_taken(self.ring)
