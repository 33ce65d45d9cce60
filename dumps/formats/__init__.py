"""File formats that tensors are read from: one module each, which checks what the file states against the file.

Each finds tensors without reading their values, and hands out handles (`firstdiff.dumps.tensors.Tensor`) that do.
"""
