# How a folder becomes a library, a program or tests: every source in it, one set of warnings.
set(SLUICE_SANITIZE "" CACHE STRING "Sanitizers for every target, e.g. address,undefined")

add_library(sluice_options INTERFACE)
target_include_directories(sluice_options INTERFACE ${CMAKE_SOURCE_DIR})
target_include_directories(sluice_options SYSTEM INTERFACE ${EXPECTED_INCLUDE_DIR}
  ${XXHASH_INCLUDE_DIR})
set(cxx_options -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Werror
  -ffp-contract=off)
target_compile_options(sluice_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${cxx_options}>")
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlaps in std::string's operator+ that cannot be (its bug 105651).
  target_compile_options(sluice_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict>)
endif()
if(SLUICE_SANITIZE)
  # -O1 and -g1 halve the time that a sanitized build takes.
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
  target_compile_options(sluice_options INTERFACE -fsanitize=${SLUICE_SANITIZE}
    -fno-omit-frame-pointer)
  # kernels/cpu/targets.hpp says what these leave out.
  target_compile_definitions(sluice_options INTERFACE SLUICE_SANITIZED)
  if(SLUICE_SANITIZE MATCHES "thread|fuzzer")
    target_compile_definitions(sluice_options INTERFACE SLUICE_KERNELS_UNTESTED)
  endif()
  target_link_options(sluice_options INTERFACE -fsanitize=${SLUICE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # GCC says itself that sanitizers make this warning unreliable; release builds keep it.
    target_compile_options(sluice_options INTERFACE -Wno-maybe-uninitialized)
  endif()
  if(SLUICE_SANITIZE MATCHES undefined)
    # What these two find, the address sanitizer finds too; they cost a fourth of the build.
    # Alignment matters where bytes of a file are read: CMakeLists.txt turns it on there.
    target_compile_options(sluice_options INTERFACE -fno-sanitize-recover=undefined
      -fno-sanitize=null,object-size,alignment)
  endif()
endif()

# sluice_library(folder PUBLIC libs... PRIVATE libs...)
function(sluice_library folder)
  cmake_parse_arguments(arg "" "" "PUBLIC;PRIVATE" ${ARGN})
  string(REPLACE "/" "_" name ${folder})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/kernels/cuda/")  # a plugin: SluiceCuda.cmake
  if(NOT sources)
    add_library(sluice_${name} INTERFACE)
    target_link_libraries(sluice_${name} INTERFACE sluice_options ${arg_PUBLIC} ${arg_PRIVATE})
    return()
  endif()
  add_library(sluice_${name} STATIC ${sources})
  target_link_libraries(sluice_${name} PUBLIC sluice_options ${arg_PUBLIC}
    PRIVATE ${arg_PRIVATE})
endfunction()

# sluice_interface(target): adds the hash by which programs and plugins know each other.
file(GLOB interface_headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*.hpp)
set(interface_build "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} ${SLUICE_SANITIZE}")
add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/kernels_interface.cpp
  COMMAND ${CMAKE_COMMAND} "-DHEADERS=${interface_headers}" "-DBUILD=${interface_build}"
    -DOUTPUT=${CMAKE_BINARY_DIR}/kernels_interface.cpp
    -P ${CMAKE_SOURCE_DIR}/cmake/Interface.cmake
  DEPENDS ${interface_headers} ${CMAKE_SOURCE_DIR}/cmake/Interface.cmake VERBATIM)
add_custom_target(sluice_interface DEPENDS ${CMAKE_BINARY_DIR}/kernels_interface.cpp)
function(sluice_interface target)
  add_dependencies(${target} sluice_interface)
  target_sources(${target} PRIVATE ${CMAKE_BINARY_DIR}/kernels_interface.cpp)
endfunction()

# sluice_program(folder NAME binary LINK libs...)
function(sluice_program folder)
  cmake_parse_arguments(arg "" "NAME" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${folder}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${arg_NAME} ${sources})
  set_target_properties(${arg_NAME} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_link_libraries(${arg_NAME} PRIVATE sluice_options ${arg_LINK})
endfunction()

# What every test runs with; processes that it starts inherit it. Weights that they keep are not the
# user's.
set(tsan_options halt_on_error=1:second_deadlock_stack=1)
string(APPEND tsan_options :suppressions=${CMAKE_SOURCE_DIR}/tests/tsan/suppressions)
set(SLUICE_TEST_ENVIRONMENT
  XDG_CACHE_HOME=${CMAKE_BINARY_DIR}/cache
  ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:check_initialization_order=1
  UBSAN_OPTIONS=print_stacktrace=1
  TSAN_OPTIONS=${tsan_options})

# From the test programs' folder to the tree, as the kernel names both (tests/places.hpp).
file(REAL_PATH ${CMAKE_BINARY_DIR} real_build)
file(REAL_PATH ${CMAKE_SOURCE_DIR} real_source)
file(RELATIVE_PATH SLUICE_TREE ${real_build} ${real_source})

# sluice_tests(folder LINK libs...): tests/<folder>/*.cpp as one Boost.Test binary, a ctest entry a
# file (each file is one BOOST_AUTO_TEST_SUITE named after it).
function(sluice_tests folder)
  cmake_parse_arguments(arg "" "" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${folder}/*.cpp)
  if(NOT sources OR NOT Boost_FOUND)
    return()
  endif()
  add_executable(test_${folder} ${sources} ${CMAKE_SOURCE_DIR}/tests/main.cpp)
  target_compile_definitions(test_${folder} PRIVATE
    SLUICE_FIXTURES="${CMAKE_SOURCE_DIR}/tests/fixtures" SLUICE_MODELS="${CMAKE_SOURCE_DIR}/models"
    SLUICE_BINARY="${CMAKE_BINARY_DIR}/sluice" SLUICE_TREE="${SLUICE_TREE}"
    BOOST_TEST_DYN_LINK)
  target_link_libraries(test_${folder}
    PRIVATE sluice_options Boost::unit_test_framework ${arg_LINK})
  # Seconds. Pretended devices take ten times as long where every access is watched.
  set(suite_limit 300)
  if(SLUICE_SANITIZE MATCHES "thread|address")
    set(suite_limit 1800)
  endif()
  foreach(source ${sources})
    get_filename_component(suite ${source} NAME_WE)
    file(STRINGS ${source} has_case REGEX "TEST_CASE\\(" LIMIT_COUNT 1)
    if(NOT has_case)
      continue()  # what several suites share
    endif()
    file(STRINGS ${source} has_suite REGEX "TEST_SUITE\\(${suite}[,)]" LIMIT_COUNT 1)
    if(NOT has_suite)
      message(FATAL_ERROR "${source}: no test would run its cases: put them into a suite ${suite}")
    endif()
    add_test(NAME ${folder}/${suite}
      COMMAND test_${folder} --run_test=${suite} --catch_system_errors=no)
    set_tests_properties(${folder}/${suite} PROPERTIES
      TIMEOUT ${suite_limit} SKIP_REGULAR_EXPRESSION "skipped: models/"
      ENVIRONMENT "${SLUICE_TEST_ENVIRONMENT}")
  endforeach()
endfunction()

# tests/fuzz/*.cpp, each a libFuzzer target, in the fuzz preset only.
function(sluice_fuzzers)
  if(NOT SLUICE_SANITIZE MATCHES fuzzer)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/fuzz/*.cpp)
  foreach(source ${sources})
    get_filename_component(name ${source} NAME_WE)
    add_executable(fuzz_${name} ${source})
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(fuzz_${name} PRIVATE sluice_transport)
  endforeach()
endfunction()
