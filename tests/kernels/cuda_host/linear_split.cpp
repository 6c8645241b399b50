// The kernels of this file on the host.
#include "kernels/cuda/linear_split.cu"
