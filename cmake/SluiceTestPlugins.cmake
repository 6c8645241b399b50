# Pretended drivers and plugins, each a state that a machine can be in (tests/kernels/backends.cpp).
# sluice_test_plugin(file SOURCES sources... DEFINE definitions...): a library below plugins/.
function(sluice_test_plugin file)
  cmake_parse_arguments(arg "" "" "SOURCES;DEFINE" ${ARGN})
  string(REPLACE "/" "_" target test_plugin_${file})
  get_filename_component(folder ${file} DIRECTORY)
  get_filename_component(name ${file} NAME)
  add_library(${target} MODULE ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE sluice_options)
  target_compile_definitions(${target} PRIVATE ${arg_DEFINE})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME ${name}
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/plugins/${folder})
  foreach(test test_kernels test_actors)
    if(TARGET ${test})
      add_dependencies(${test} ${target})
    endif()
  endforeach()
endfunction()

set(pretended ${CMAKE_SOURCE_DIR}/tests/kernels/plugins)
sluice_test_plugin(driver_ok SOURCES ${pretended}/driver.cpp DEFINE PRETEND_INIT=0)
sluice_test_plugin(driver_no_device SOURCES ${pretended}/driver.cpp DEFINE PRETEND_INIT=100)
sluice_test_plugin(driver_broken SOURCES ${pretended}/driver.cpp DEFINE PRETEND_INIT=803)
sluice_test_plugin(empty/sluice_cuda SOURCES ${pretended}/driver.cpp DEFINE PRETEND_INIT=0)
sluice_test_plugin(other_abi/sluice_cuda SOURCES ${pretended}/stranger.cpp DEFINE PRETEND_ABI=999)
sluice_test_plugin(other_build/sluice_cuda SOURCES ${pretended}/stranger.cpp DEFINE PRETEND_ABI=1)
foreach(plugin good=12000 newer_driver=13000)
  string(REPLACE "=" ";" plugin ${plugin})
  list(POP_FRONT plugin folder driver)
  sluice_test_plugin(${folder}/sluice_cuda
    SOURCES ${pretended}/backend.cpp ${CMAKE_SOURCE_DIR}/kernels/core.cpp
    DEFINE PRETEND_DRIVER_MIN=${driver})
  target_link_libraries(test_plugin_${folder}_sluice_cuda PRIVATE fmt::fmt)
  sluice_interface(test_plugin_${folder}_sluice_cuda)
endforeach()
# A pretended NCCL calls functions of the test that loads it, of its pretended CUDA runtime.
if(TARGET test_kernels)
  target_link_options(test_kernels PRIVATE "LINKER:--export-dynamic-symbol=*cudaLaunchHostFunc*"
    "LINKER:--export-dynamic-symbol=*keep_with_capture*")
  sluice_test_plugin(nccl SOURCES ${pretended}/nccl.cpp DEFINE PRETEND_START=0)
  sluice_test_plugin(nccl_stuck SOURCES ${pretended}/nccl.cpp DEFINE PRETEND_START=7)
  sluice_test_plugin(nccl_broken SOURCES ${pretended}/nccl.cpp DEFINE PRETEND_START=6)
  foreach(capture refused=5 stuck=7)
    string(REPLACE "=" ";" capture ${capture})
    list(POP_FRONT capture how status)
    sluice_test_plugin(nccl_capture_${how} SOURCES ${pretended}/nccl.cpp
      DEFINE PRETEND_CAPTURE=${status})
    sluice_test_plugin(nccl_later_capture_${how} SOURCES ${pretended}/nccl.cpp
      DEFINE PRETEND_CAPTURE=${status} PRETEND_CAPTURED=1)
  endforeach()
  sluice_test_plugin(nccl_wrong SOURCES ${pretended}/nccl.cpp DEFINE PRETEND_WRONG=1)
  sluice_test_plugin(nccl_old SOURCES ${pretended}/nccl.cpp DEFINE PRETEND_VERSION=21403)
endif()
