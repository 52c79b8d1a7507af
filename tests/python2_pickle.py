"""Pickles as Python 2's cPickle wrote them in protocol 2, with NumPy arrays of its time, byte by byte."""

import struct

import numpy as np


class Pickler:
    def __init__(self):
        self.remembered = 0
        self.names = {}

    def dumps(self, value):
        return b"\x80\x02" + self.write(value) + b"."

    def memo(self, short, long, index):
        return short + bytes([index]) if index < 256 else long + struct.pack("<I", index)

    def remember(self):
        self.remembered += 1
        return self.memo(b"q", b"r", self.remembered)

    def name(self, module, name):
        if (module, name) in self.names:
            return self.memo(b"h", b"j", self.names[module, name])
        put = self.remember()
        self.names[module, name] = self.remembered
        return f"c{module}\n{name}\n".encode() + put

    def write(self, value):
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            if 0 <= value < 256:
                return b"K" + bytes([value])
            return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)
        if isinstance(value, str):
            text = value.encode("latin1")
            short = len(text) < 256
            return (
                (b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<i", len(text)))
                + text
                + (self.remember())
            )
        if isinstance(value, list):
            start = b"]" + self.remember()
            return start + (b"(" + b"".join(map(self.write, value)) + b"e" if value else b"")
        if isinstance(value, dict):
            start = b"}" + self.remember() + b"("
            return start + b"".join(self.write(k) + self.write(v) for k, v in value.items()) + b"u"
        return self.array(value)

    def array(self, value):
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        content = value.tobytes("F" if fortran else "C").decode("latin1")
        parts = [
            self.name("numpy.core.multiarray", "_reconstruct"),
            self.name("numpy", "ndarray"),
            b"K\x00\x85" + self.remember() + b"U\x01b\x87" + self.remember() + b"R" + self.remember(),
            b"(K\x01(" + b"".join(map(self.write, value.shape)) + b"t",
            self.name("numpy", "dtype"),
            self.write(value.dtype.str[1:]) + b"K\x00K\x01\x87" + self.remember() + b"R" + self.remember(),
            b"(K\x03" + self.write(value.dtype.str[0]) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            self.write(bool(fortran)) + self.write(content) + b"tb",
        ]
        return b"".join(parts)


def dumps(value):
    """``value`` of dictionaries, lists, text, numbers and arrays; text becomes Python 2's byte strings."""
    assert not isinstance(value, np.generic)
    return Pickler().dumps(value)
