"""The functions that Triton compiles. Names: ``b_`` a block's values, ``o_`` offsets, ``m_`` masks, ``i_`` indices.

Strides are in elements, and the last axis is dense. A helper in here is compiled into whatever calls it.
"""
