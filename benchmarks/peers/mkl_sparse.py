"""oneMKL's inspector-executor sparse kernels through ctypes: a CSR matrix, told what it will be used for, times a vector
or a row-major dense matrix. Without Python's checks between the caller and the kernel."""
import ctypes
import glob
import os
import sys

import numpy as np

NON_TRANSPOSED, GENERAL, ROW_MAJOR = 10, 20, 101
CALLS = 1000000


class Description(ctypes.Structure):
    """struct matrix_descr"""

    _fields_ = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diagonal", ctypes.c_int)]


def library():
    found = sorted(glob.glob(os.path.join(sys.prefix, "lib", "libmkl_rt.so*")))
    if not found:
        sys.exit(f"oneMKL is not in {sys.prefix}")
    return ctypes.CDLL(found[-1])


class SparseMatrix:
    """`matrix` (scipy's CSR, float32) prepared for products with `columns` vectors at a time; with `optimise` oneMKL may
    look at it and keep what it found, otherwise it takes the arrays as they are."""

    def __init__(self, mkl, matrix, columns, optimise=True):
        self.mkl, self.columns = mkl, columns
        self.shape = matrix.shape
        self.arrays = (matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data)
        offsets, indices, values = (a.ctypes.data for a in self.arrays)
        self.handle = ctypes.c_void_p()
        self.description = Description(GENERAL, 0, 0)
        self.call("mkl_sparse_s_create_csr", ctypes.byref(self.handle), 0, *map(ctypes.c_int, self.shape),
                  ctypes.c_void_p(offsets), ctypes.c_void_p(offsets + 4), ctypes.c_void_p(indices),
                  ctypes.c_void_p(values))
        if not optimise:
            return
        if columns == 1:
            self.call("mkl_sparse_set_mv_hint", self.handle, NON_TRANSPOSED, self.description, CALLS)
        else:
            self.call("mkl_sparse_set_mm_hint", self.handle, NON_TRANSPOSED, self.description, ROW_MAJOR, columns,
                      CALLS)
        self.call("mkl_sparse_optimize", self.handle)

    def call(self, name, *arguments):
        status = getattr(self.mkl, name)(*arguments)
        if status != 0:
            sys.exit(f"{name}: status {status}")

    def product(self, x, y):
        """A function that writes matrix * x to y (C-contiguous float32; x has `columns` columns)."""
        self.operands = (x, y)  # the addresses below do not keep them alive
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        x_data, y_data = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
        if self.columns == 1:
            function = self.mkl.mkl_sparse_s_mv
            return lambda: function(NON_TRANSPOSED, one, self.handle, self.description, x_data, zero, y_data)
        function, n = self.mkl.mkl_sparse_s_mm, self.columns
        return lambda: function(NON_TRANSPOSED, one, self.handle, self.description, ROW_MAJOR, x_data, n, n, zero,
                                y_data, n)

