// The kernels of this file on the host.
#include "kernels/cuda/attention_wide.cu"
