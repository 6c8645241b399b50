# cmake --install lays out what scripts/bundle.sh packs: programs, plugin, configs, deploy, licence.
# Of the bare preset also what its tests read: its archive may be all that a GPU's host has.
#
# The build folder's files get the same path: CMake would fill the place for it with colons, each of
# which stands for the working directory.
set(rpath BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH)
set(programs sluice sluice-bench)
if(SLUICE_BARE)
  # What tests and measures the backends goes where the devices are.
  list(APPEND programs test_kernels test_model sluice-bench-collectives)
endif()
foreach(program IN LISTS programs)
  if(TARGET ${program})
    # DT_RPATH and not DT_RUNPATH, for the former also serves the libraries' own libraries.
    target_link_options(${program} PRIVATE LINKER:--disable-new-dtags)
    set_target_properties(${program} PROPERTIES ${rpath} $ORIGIN/../lib)
    install(TARGETS ${program} RUNTIME DESTINATION bin)
  endif()
endforeach()
if(SLUICE_BARE AND TARGET test_kernels)
  foreach(fixture quant chat_template checkpoints golden safetensors tokenizer)
    install(DIRECTORY ${CMAKE_SOURCE_DIR}/tests/fixtures/${fixture} DESTINATION tests/fixtures)
  endforeach()
endif()
if(TARGET sluice_cuda)
  target_link_options(sluice_cuda PRIVATE LINKER:--disable-new-dtags)
  set_target_properties(sluice_cuda PROPERTIES ${rpath} $ORIGIN/..)
  install(TARGETS sluice_cuda LIBRARY DESTINATION lib/sluice)
endif()
if(TARGET sluice_gpu_trace)
  set_target_properties(sluice_gpu_trace PROPERTIES ${rpath} $ORIGIN/..)
  install(TARGETS sluice_gpu_trace LIBRARY DESTINATION lib/sluice)
endif()
install(DIRECTORY ${CMAKE_SOURCE_DIR}/configs ${CMAKE_SOURCE_DIR}/deploy DESTINATION .
        USE_SOURCE_PERMISSIONS
        PATTERN check.sh EXCLUDE)  # of the tree alone
install(FILES ${CMAKE_SOURCE_DIR}/LICENSE ${CMAKE_SOURCE_DIR}/README.md DESTINATION .)
