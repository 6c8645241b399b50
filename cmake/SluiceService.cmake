# Everything above kernels, model and engine: what speaks and what people use.
sluice_library(transport PUBLIC sluice_engine PRIVATE PkgConfig::ZEROMQ PkgConfig::SODIUM)
sluice_library(actors PUBLIC sluice_transport CAF::core
               PRIVATE spdlog::spdlog nlohmann_json::nlohmann_json PkgConfig::ZEROMQ
                       PkgConfig::SODIUM)
if(SLUICE_SANITIZE MATCHES thread)
  add_library(sluice_tsan OBJECT tests/tsan/caf.cpp)
  target_link_libraries(sluice_tsan PUBLIC sluice_options CAF::core ${CMAKE_DL_LIBS})
  target_link_libraries(sluice_actors PUBLIC sluice_tsan $<TARGET_OBJECTS:sluice_tsan>)
endif()
sluice_library(bench/serve PUBLIC sluice_transport PRIVATE nlohmann_json::nlohmann_json)
sluice_program(cli NAME sluice
               LINK sluice_actors sluice_latency sluice_bench_serve PkgConfig::EDIT
                    PkgConfig::ZEROMQ CLI11::CLI11 nlohmann_json::nlohmann_json
                    tomlplusplus::tomlplusplus spdlog::spdlog)

if(TARGET sluice)
  add_custom_target(sluice_version BYPRODUCTS ${CMAKE_BINARY_DIR}/version.cpp
    COMMAND ${CMAKE_COMMAND} -D SOURCE=${CMAKE_SOURCE_DIR} -D VERSION=${PROJECT_VERSION}
      -D OUTPUT=${CMAKE_BINARY_DIR}/version.cpp -P ${CMAKE_SOURCE_DIR}/cmake/Version.cmake)
  target_sources(sluice PRIVATE ${CMAKE_BINARY_DIR}/version.cpp)
  add_dependencies(sluice sluice_version)
endif()

sluice_tests(transport LINK sluice_transport PkgConfig::ZEROMQ)
sluice_tests(actors LINK sluice_actors PkgConfig::ZEROMQ)
sluice_tests(bench LINK sluice_latency sluice_bench_serve nlohmann_json::nlohmann_json)
sluice_tests(cli LINK nlohmann_json::nlohmann_json)
if(TEST cli/four_processes)
  # Processes that compute together wait for each other, and for longer than that beside another.
  set_tests_properties(cli/four_processes PROPERTIES PROCESSORS 2)
endif()
sluice_program(tests/simulate NAME test_simulate LINK sluice_actors)
# Sanitizers look for what any seed does; what only one in a thousand does, release builds do.
set(simulated_seeds 1000)
if(SLUICE_SANITIZE)
  set(simulated_seeds 300)
endif()
add_test(NAME simulate COMMAND test_simulate --seeds ${simulated_seeds})
add_test(NAME simulate-fleets COMMAND test_simulate --fleets --seeds ${simulated_seeds})
set_tests_properties(simulate simulate-fleets PROPERTIES TIMEOUT 300
                     ENVIRONMENT "${SLUICE_TEST_ENVIRONMENT}")
sluice_program(bench/path NAME sluice-bench-path
               LINK sluice_actors PkgConfig::ZEROMQ nlohmann_json::nlohmann_json)
sluice_program(tests/soak NAME sluice-soak LINK sluice_actors PkgConfig::ZEROMQ)
if(TARGET sluice-soak)
  add_test(NAME soak COMMAND sluice-soak --seconds 30
           --model ${CMAKE_SOURCE_DIR}/models/SmolLM2-135M-Instruct-Q4_1.gguf)
  set_tests_properties(soak PROPERTIES TIMEOUT 300 ENVIRONMENT "${SLUICE_TEST_ENVIRONMENT}")
endif()
sluice_program(bench/streams NAME sluice-bench-streams
               LINK sluice_actors PkgConfig::ZEROMQ nlohmann_json::nlohmann_json)
sluice_program(bench/curve NAME sluice-bench-curve
               LINK sluice_actors PkgConfig::ZEROMQ nlohmann_json::nlohmann_json)
sluice_program(examples/cpp NAME example-client LINK sluice_transport)
sluice_fuzzers()
