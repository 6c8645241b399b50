# The CUDA backend on the host: its own sources, compiled by the C++ compiler over the runtime of
# tests/kernels/cuda_host, so that the kernels' bodies are run where there is no GPU.
file(GLOB cuda_host_sources CONFIGURE_DEPENDS
  ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cpp ${CMAKE_SOURCE_DIR}/tests/kernels/cuda_host/*.cpp)
list(REMOVE_ITEM cuda_host_sources ${CMAKE_SOURCE_DIR}/kernels/cuda/plugin.cpp)
add_library(sluice_cuda_host STATIC EXCLUDE_FROM_ALL ${cuda_host_sources})
# Before the toolkit's own, which the plugin is built with.
target_include_directories(sluice_cuda_host BEFORE PUBLIC
  ${CMAKE_SOURCE_DIR}/tests/kernels/cuda_host)
target_link_libraries(sluice_cuda_host PUBLIC sluice_kernels Threads::Threads)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL x86_64)
  # Every processor since 2013 has them; as functions each takes a fifth of some tests' time.
  target_compile_options(sluice_cuda_host PRIVATE -mfma -mf16c)
endif()
if(SLUICE_SANITIZE)
  target_compile_options(sluice_cuda_host PRIVATE -O2)  # halves the time that its tests take
endif()
if(SLUICE_SANITIZE MATCHES address)
  # A kernel's own arrays have bounds that -fsanitize=undefined checks.
  target_compile_options(sluice_cuda_host PRIVATE --param=asan-stack=0)
endif()
if(SLUICE_SANITIZE MATCHES undefined)
  # A misaligned read is a fault on a device, and nothing on this machine.
  target_compile_options(sluice_cuda_host PRIVATE -fsanitize=alignment)
endif()
