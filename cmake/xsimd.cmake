# strata::xsimd, xsimd's headers and nothing more: Debian's own target also wants xtl, which we do not use.

# Sets STRATA_XSIMD_INCLUDE_DIR to where the headers are, as the cache says, as a target `xsimd` has them or as they are
# installed, and STRATA_XSIMD_PROBLEM to what is wrong with them, or to nothing.
function(strata_find_xsimd)
  set(hints)
  if(TARGET xsimd)
    get_target_property(hints xsimd INTERFACE_INCLUDE_DIRECTORIES)
    # A target of this build has its directory in a generator expression.
    list(TRANSFORM hints REPLACE "^\\$<BUILD_INTERFACE:(.*)>$" "\\1")
    list(FILTER hints EXCLUDE REGEX "\\$<|NOTFOUND")
  endif()
  find_path(STRATA_XSIMD_INCLUDE_DIR xsimd/xsimd.hpp HINTS ${hints})
  set(STRATA_XSIMD_PROBLEM "none: install it, or set STRATA_XSIMD_INCLUDE_DIR" PARENT_SCOPE)
  if(STRATA_XSIMD_INCLUDE_DIR AND EXISTS ${STRATA_XSIMD_INCLUDE_DIR}/xsimd/config/xsimd_config.hpp)
    file(READ ${STRATA_XSIMD_INCLUDE_DIR}/xsimd/config/xsimd_config.hpp header)
    foreach(part MAJOR MINOR)
      string(REGEX MATCH "XSIMD_VERSION_${part} +([0-9]+)" _ "${header}")
      set(${part} ${CMAKE_MATCH_1})
    endforeach()
    set(STRATA_XSIMD_PROBLEM "${MAJOR}.${MINOR} in ${STRATA_XSIMD_INCLUDE_DIR}" PARENT_SCOPE)
    if(MAJOR EQUAL 8 AND MINOR GREATER_EQUAL 1)
      set(STRATA_XSIMD_PROBLEM "" PARENT_SCOPE)
    endif()
  endif()
endfunction()

# Makes the target of the headers that were found.
function(strata_add_xsimd)
  if(NOT TARGET strata::xsimd)
    add_library(strata::xsimd INTERFACE IMPORTED)
    target_include_directories(strata::xsimd SYSTEM INTERFACE ${STRATA_XSIMD_INCLUDE_DIR})
  endif()
endfunction()
