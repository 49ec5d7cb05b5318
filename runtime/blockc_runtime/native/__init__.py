"""Kernels in C++ for CPUs: what decoding spends its time on beside matrix products, in few passes over memory."""
