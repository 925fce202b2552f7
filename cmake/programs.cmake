# strata_program(name source [libraries...]): an example or a benchmark, for the machine that builds it.
function(strata_program name source)
  add_executable(${name} ${source})
  target_link_libraries(${name} PRIVATE strata::strata strata_warnings ${ARGN})
  target_compile_options(${name} PRIVATE -march=native)
endfunction()
