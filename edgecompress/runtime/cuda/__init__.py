"""The parts of CUDA that the runtime uses: one device, its memory, and copies to and from it."""
