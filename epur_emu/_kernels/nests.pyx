# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Loop nests of streams, checked and laid out as a table; ``streams.py`` says what they are.

Only plain values are taken here, and only those that are in order; all others are left to the caller, who says
what is wrong.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t

cdef extern from *:
    """
    #define LIMIT ((int64_t)1 << 62)
    /* *sum += a * b; 0 beyond LIMIT on either side */
    static int add_product(int64_t *sum, int64_t a, int64_t b) {
        int64_t product;
        return !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(*sum, product, sum) &&
               *sum >= -LIMIT && *sum <= LIMIT;
    }
    """
    const int64_t LIMIT
    bint add_product(int64_t* sum, int64_t a, int64_t b) nogil

cdef extern from "Python.h":
    int64_t PyLong_AsLongLongAndOverflow(object, int*) except? -1

cdef enum:
    MOST = 6  # loops
    MOST_NAME = 255  # bytes


#: For ``streams.py``, which says what they bound.
MAX_LOOPS, MAX_NAME, BOUND = MOST, MOST_NAME, LIMIT


cdef packed struct stream_row:
    int32_t phase, component
    uint8_t op
    int64_t bytes, address, cycle
    int64_t count[MOST]
    int64_t by[MOST]
    int64_t wait[MOST]


cdef inline bint _number(object value, int64_t least, int64_t* out) except -1:
    """Whether `value` is a plain int from `least` to LIMIT."""
    cdef int overflow = 0
    if type(value) is not int:
        return False
    out[0] = PyLong_AsLongLongAndOverflow(value, &overflow)
    return not overflow and least <= out[0] <= LIMIT


cdef inline bint _follows(int64_t count, int64_t stride, int64_t outer) noexcept:
    """Whether an outer loop goes on where `count` turns of `stride` have led."""
    cdef int64_t reach = 0
    return add_product(&reach, count, stride) and reach == outer


cdef class Stream:
    """The fields of ``streams.AccessStream``, which checks what is not plain."""
    cdef readonly str component, op
    cdef readonly int64_t bytes, address, cycle, accesses, span
    # In canonical form, innermost first.
    cdef int depth
    cdef int64_t count[MOST]
    cdef int64_t by[MOST]
    cdef int64_t wait[MOST]

    def __init__(self, component, op, bytes, address, cycle, loops=()):
        if _plain_name(component) and self._take(component, op, bytes, address, cycle, loops):
            return
        component, op, bytes, address, cycle, loops = self._checked(component, op, bytes, address, cycle, loops)
        if not self._take(component, op, bytes, address, cycle, loops):
            raise AssertionError("a stream that was checked is not in order")

    cdef bint _take(self, component, op, size, address, cycle, loops) except -1:
        """Hold these; whether they were in order."""
        cdef Py_ssize_t k
        if type(op) is not str or not (op == "read" or op == "write"):
            return False
        if type(loops) is not tuple or len(<tuple>loops) > MOST:
            return False
        if not (_number(size, 1, &self.bytes) and _number(address, 0, &self.address)
                and _number(cycle, 0, &self.cycle)):
            return False
        self.component, self.op = component, op
        self.depth, self.accesses, self.span = 0, 1, 0
        for k in range(len(<tuple>loops) - 1, -1, -1):
            if not self._around((<tuple>loops)[k]):
                return False
        return self._fits()

    cdef bint _around(self, loop) except -1:
        """Put a loop around those that are here; whether it is in order."""
        cdef int64_t count, by, wait
        cdef int top = self.depth - 1
        if type(loop) is not tuple or len(<tuple>loop) != 3:
            return False
        if not (_number((<tuple>loop)[0], 1, &count) and _number((<tuple>loop)[1], -LIMIT, &by)
                and _number((<tuple>loop)[2], -LIMIT, &wait)):
            return False
        if count == 1:
            return True
        if wait < self.span or not add_product(&self.span, count - 1, wait):
            return False
        if not add_product(&self.accesses, self.accesses, count - 1):
            return False
        if top >= 0 and _follows(self.count[top], self.by[top], by) and _follows(self.count[top], self.wait[top], wait):
            self.count[top] *= count
        else:
            self.count[self.depth], self.by[self.depth], self.wait[self.depth] = count, by, wait
            self.depth += 1
        return True

    cdef bint _fits(self) noexcept:
        """Whether addresses, cycles and total lie within their bounds."""
        cdef int64_t low = self.address, high = self.address, last = self.cycle, total = 0
        cdef int k
        for k in range(self.depth):
            if not add_product(&low if self.by[k] < 0 else &high, self.count[k] - 1, self.by[k]):
                return False
        return (low >= 0 and self.cycle >= 0 and add_product(&high, self.bytes, 1)
                and add_product(&last, self.span, 1) and add_product(&total, self.accesses, self.bytes))

    cdef Stream _copy(self):
        cdef Stream other = type(self).__new__(type(self))
        other.component, other.op = self.component, self.op
        other.bytes, other.address, other.cycle = self.bytes, self.address, self.cycle
        other.accesses, other.span, other.depth = self.accesses, self.span, self.depth
        other.count, other.by, other.wait = self.count, self.by, self.wait
        return other

    @property
    def loops(self):
        return tuple([(self.count[k], self.by[k], self.wait[k]) for k in range(self.depth - 1, -1, -1)])

    def at(self, component):
        """The same accesses of another component."""
        cdef Stream other
        if not _plain_name(component):
            return type(self)(component, *self._values()[1:])
        other = self._copy()
        other.component = component
        return other

    cdef Stream _moved(self, int64_t address, int64_t cycle):
        """The same accesses, so many bytes and cycles further on."""
        cdef Stream other = self._copy()
        if add_product(&other.address, address, 1) and add_product(&other.cycle, cycle, 1) and other._fits():
            return other
        component, op, size, before, begin, loops = self._values()
        return type(self)(component, op, size, before + address, begin + cycle, loops)

    def _values(self):
        return self.component, self.op, self.bytes, self.address, self.cycle, self.loops

    def __eq__(self, other):
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self):
        return hash(self._values())

    def __reduce__(self):
        return type(self), self._values()

    def __repr__(self):
        names = "component", "op", "bytes", "address", "cycle", "loops"
        fields = ", ".join([f"{name}={value!r}" for name, value in zip(names, self._values())])
        return f"{type(self).__name__}({fields})"


cdef inline bint _plain_name(name) except -1:
    """Whether a trace can hold it, for all that this tells; False says nothing."""
    return (type(name) is str and 0 < len(<str>name) <= MOST_NAME and (<str>name).isascii()
            and (<str>name).isprintable())


def table(stream_row[::1] out, Py_ssize_t first, Py_ssize_t phase, streams, dict place):
    """One row for each of a phase's streams, from row `first` on; loops beyond a stream's own are (1, 0, 0).

    Returns
    -------
    begin, end : int
        Cycle of the first access, and after the last; 0 if there is none.
    """
    cdef Py_ssize_t row = first, k, inner
    cdef int64_t begin = LIMIT, end = 0
    cdef Stream s
    cdef stream_row* r
    for s in streams:
        r = &out[row]
        r.phase, r.component, r.op = <int32_t>phase, place[s.component], s.op == "write"
        r.bytes, r.address, r.cycle = s.bytes, s.address, s.cycle
        for k in range(MOST):
            inner = s.depth - 1 - k
            if inner >= 0:
                r.count[k], r.by[k], r.wait[k] = s.count[inner], s.by[inner], s.wait[inner]
            else:
                r.count[k], r.by[k], r.wait[k] = 1, 0, 0
        begin, end = min(begin, s.cycle), max(end, s.cycle + s.span + 1)
        row += 1
    return min(begin, end), end


def moved(streams, list regions, int64_t cycles):
    """The same streams, so many cycles later.

    Those of a component that begin in one of its `regions` (component, first address, address behind, bytes) also
    move by so many bytes.
    """
    cdef Stream s
    cdef int64_t address, begin, end, by
    out = []
    for s in streams:
        address = 0
        for component, begin, end, by in regions:
            if s.component == component and begin <= s.address < end:
                address = by
                break
        out.append(s._moved(address, cycles))
    return out


def sums(streams):
    """(accesses, bytes) by (component, op), in the order in which they come."""
    cdef dict found = {}
    cdef Stream s
    for s in streams:
        key = s.component, s.op
        accesses, size = found.get(key, (0, 0))
        found[key] = accesses + s.accesses, size + s.accesses * s.bytes
    return found
