"""What the runtime needs of CUDA: one device, its memory, and copies to and from it."""
