# The CUDA backend: a plugin, built where nvcc is found and left out where it is not. The program
# that loads it links nothing of CUDA (kernels/backends.hpp).
set(SLUICE_CUDA AUTO CACHE STRING "CUDA plugin: AUTO (built if nvcc is found), ON or OFF")
set_property(CACHE SLUICE_CUDA PROPERTY STRINGS AUTO ON OFF)

file(GLOB cuda_kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
set(cuda_missing "")
if(NOT SLUICE_CUDA)
  set(cuda_missing "SLUICE_CUDA=OFF")
elseif(NOT cuda_kernels OR NOT EXISTS ${CMAKE_SOURCE_DIR}/kernels/cuda/backend.hpp)
  set(cuda_missing "kernels/cuda has no backend")
elseif(SLUICE_SANITIZE)
  set(cuda_missing "sanitizers do not reach a device")
else()
  # The toolkit's own folder is often not on the PATH.
  find_program(SLUICE_NVCC nvcc HINTS ENV CUDA_HOME /usr/local/cuda PATH_SUFFIXES bin)
  if(SLUICE_NVCC)
    set(ENV{CUDACXX} ${SLUICE_NVCC})
  endif()
  # Machine code for A100 and for Hopper with its own instructions; PTX for what comes after.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual CACHE STRING "CUDA targets")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_missing "no nvcc that works")
  endif()
endif()
if(cuda_missing)
  if(SLUICE_CUDA STREQUAL ON)
    message(FATAL_ERROR "SLUICE_CUDA=ON, and ${cuda_missing}: install the CUDA toolkit, or name "
      "its nvcc by SLUICE_NVCC")
  endif()
  message(STATUS "CUDA plugin: no (${cuda_missing}); the CPU's backend is built")
  return()
endif()

enable_language(CUDA)
set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # CMake 3.25 knows C++20 of nvcc 12 and not of 13.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
find_package(CUDAToolkit REQUIRED)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})

# The plugin has its own copy of the folder's plain parts: it needs no symbol of the program.
file(GLOB cuda_sources CONFIGURE_DEPENDS
  ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cpp ${CMAKE_SOURCE_DIR}/kernels/*.cpp)
list(REMOVE_ITEM cuda_sources ${CMAKE_SOURCE_DIR}/kernels/backends.cpp)
add_library(sluice_cuda MODULE ${cuda_kernels} ${cuda_sources})
sluice_interface(sluice_cuda)
set_target_properties(sluice_cuda PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} CUDA_RUNTIME_LIBRARY Static
  CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
target_include_directories(sluice_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
# fmt 9 thinks that nvcc has no constexpr, which its own consteval functions then miss.
target_compile_definitions(sluice_cuda PRIVATE SLUICE_NCCL=$<BOOL:${NCCL_INCLUDE_DIR}>
  $<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>)
# Sums and products stay apart, as in every other file: the sampler's tokens depend on it.
target_compile_options(sluice_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -lineinfo -Werror=all-warnings
  -Xcompiler=-Wall,-Wextra>)
target_link_libraries(sluice_cuda PRIVATE sluice_options fmt::fmt CUDA::cudart_static)
target_link_options(sluice_cuda PRIVATE LINKER:--no-undefined LINKER:--exclude-libs,ALL)
# For bench/gpu.py, which names it to the driver: nothing links it.
find_path(CUPTI_INCLUDE_DIR cupti.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(SLUICE_BARE AND CUPTI_INCLUDE_DIR)
  add_library(sluice_gpu_trace MODULE ${CMAKE_SOURCE_DIR}/bench/gpu_trace.cpp)
  set_target_properties(sluice_gpu_trace PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_include_directories(sluice_gpu_trace SYSTEM PRIVATE
    ${CUPTI_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(sluice_gpu_trace PRIVATE sluice_options ${CMAKE_DL_LIBS})
endif()
list(JOIN CMAKE_CUDA_ARCHITECTURES ", " targets)
message(STATUS "CUDA plugin: yes (nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${targets}; "
  "NCCL: ${NCCL_INCLUDE_DIR})")
