# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Columns of numbers to lines of text.

Cython, because each digit is written by itself.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    IN_HEX = 1
    BY_WORD = 2

DECIMAL, HEX, WORD = 0, IN_HEX, BY_WORD

cdef const char *DIGITS = "0123456789abcdef"


cdef inline char *put(char *to, uint64_t value, unsigned base) noexcept nogil:
    cdef char held[24]
    cdef int n = 0
    while True:
        held[n] = DIGITS[value % 16 if base == 16 else value % 10]
        value = value // 16 if base == 16 else value // 10
        n += 1
        if not value:
            break
    while n:
        n -= 1
        to[0] = held[n]
        to += 1
    return to


def lines(columns, kinds, words, const unsigned char[::1] before, bint grouped=False, int64_t last=-1):
    """Lines of one field for each column.

    Parameters
    ----------
    columns : list of int64 arrays of shape (n,), at most 8
        Not negative.
    kinds : list of int
        DECIMAL, HEX (with 0x) or WORD (an index into the words of that column).
    words : list of lists of bytes
        At most 255 bytes each.
    before : bytes
        What stands before each field but the first.
    grouped : bool
        Whether rows with the first field of the row before go on in its line; `last` is that of the row before all.

    Returns
    -------
    bytes
        Each line ends with a newline; if grouped, each begins with one instead (but the first of all, with `last` -1).
    """
    cdef const int64_t[::1] column
    cdef const int64_t *data[8]
    cdef int kind[8]
    cdef int f, fields = len(columns)
    cdef Py_ssize_t i, n = len(columns[0]), width = 2, size
    cdef char *to
    cdef char *start
    tables = [[bytes(w) for w in table] for table in words]
    if not n:
        return b""
    for f in range(fields):
        column = columns[f]
        data[f], kind[f] = &column[0], kinds[f]
        width += 22 if kind[f] != BY_WORD else 1 + max(map(len, tables[f]))
    out = PyBytes_FromStringAndSize(NULL, n * width)
    to = start = PyBytes_AS_STRING(out)
    cdef const char *text[8][256]
    cdef Py_ssize_t length[8][256]
    for f in range(fields):
        if kind[f] == BY_WORD:
            if len(tables[f]) > 256:
                raise OverflowError
            for i in range(len(tables[f])):
                text[f][i], length[f][i] = PyBytes_AS_STRING(tables[f][i]), len(tables[f][i])
    with nogil:
        for i in range(n):
            for f in range(fields):
                if grouped and f == 0:
                    if data[0][i] == last:
                        continue
                    if last >= 0:
                        to[0] = 10
                        to += 1
                    last = data[0][i]
                elif f:
                    to[0] = before[f]
                    to += 1
                if kind[f] == BY_WORD:
                    size = length[f][data[f][i]]
                    memcpy(to, text[f][data[f][i]], size)
                    to += size
                elif kind[f] == IN_HEX:
                    to[0], to[1] = 48, 120
                    to = put(to + 2, data[f][i], 16)
                else:
                    to = put(to, data[f][i], 10)
            if not grouped:
                to[0] = 10
                to += 1
    return out[:to - start]
