// The kernels of this file on the host.
#include "kernels/cuda/pack.cu"
