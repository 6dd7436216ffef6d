"""Fit the kernel models of :mod:`hardware_profiles.kernel_model` to tables of measured kernel times.

``python -m hardware_profiles.kernel_fit TABLES [OUT] [DEVICE...]`` reads parquet tables (``gemm``,
``attention_decode``, ``attention_context``, ``moe``, ``mla``, ``quantize``, ``deepep``, ``allreduce``,
``p2p``; any subset) and writes one ``.npz`` and one readable ``.json`` a device and framework. The same
tables give the same bytes.

Method, for each device, framework and number format: (1) the few parameters of the physical base by robust
least squares on the logarithm of time; (2) the residual as a matrix of shapes by loads, its column medians
taken off; (3) a Gaussian process over the shapes, one covariance for all columns, chosen by a descent of
the leave-one-group-out error (a group: all rows that share a shape, whatever their window or
parallelism), which has a closed form, or one for all tables (expert layers); cells that the rest contradicts by
more than six robust deviations (Huber's rule for expert layers) are drawn in; (4) the solution reduced in rank and to
16 bits, or to 32 where that would spoil it. The error on a sixth of the groups, kept out of
every part of a second fit, is recorded.
"""
