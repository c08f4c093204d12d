"""The functions that Triton compiles. Names: ``b_`` a block's values, ``o_`` offsets, ``m_`` masks, ``i_`` indices.

Strides are in elements, and the last axis is contiguous. Helpers are inlined into their callers.
"""
