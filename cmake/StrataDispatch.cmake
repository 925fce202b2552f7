# strata_add_dispatched_library(<target> SOURCES <file>... ARCHS <sse2|avx2|avx512|neon64>...)
#
# A static library with the sources compiled once per instruction set, and the header <target>_variants.hpp that
# declares `std::span<const strata::Variant> <target>_variants()` for strata::Dispatcher (<target> as a C identifier).
# docs/dispatch.md tells more.
#
# Inline functions and templates, the standard library's among them, exist in every variant under the same name, and a
# linker keeps any one of them: code for AVX-512 could end up in the part of the program that every machine runs.
# Therefore the objects of a variant are linked into one (ld -r) in which all symbols but the entry become local.
# --force-group-allocation dissolves the groups by which the linker would still take equal functions for one another.
# Constructors of global objects would run before main, on machines without the instruction set too: their table is
# renamed, and the generated code runs it when the variant is first entered.

function(strata_add_dispatched_library target)
  cmake_parse_arguments(arg "" "" "SOURCES;ARCHS" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "strata_add_dispatched_library(${target}): expected SOURCES and ARCHS, found "
                        "\"${arg_UNPARSED_ARGUMENTS}\"")
  endif()
  if(NOT arg_SOURCES OR NOT arg_ARCHS)
    message(FATAL_ERROR "strata_add_dispatched_library(${target}): expected SOURCES and ARCHS, found one of them empty")
  endif()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(known sse2 avx2 avx512)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    set(known neon64)
  else()
    set(known)
  endif()
  foreach(arch ${arg_ARCHS})
    if(NOT arch IN_LIST known)
      string(REPLACE ";" ", " names "${known}")
      message(FATAL_ERROR "strata_add_dispatched_library(${target}): expected instruction sets of "
                          "${CMAKE_SYSTEM_PROCESSOR} (${names}), found \"${arch}\"")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES arg_ARCHS)
  get_property(several GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
  if(several)
    message(FATAL_ERROR "strata_add_dispatched_library(${target}): expected a generator of one configuration (Ninja, "
                        "Unix Makefiles), found ${CMAKE_GENERATOR}")
  endif()
  execute_process(COMMAND ${CMAKE_LINKER} --help OUTPUT_VARIABLE linker_help ERROR_QUIET)
  if(NOT linker_help MATCHES "force-group-allocation" OR NOT CMAKE_OBJCOPY)
    message(FATAL_ERROR "strata_add_dispatched_library(${target}): expected GNU binutils (ld with "
                        "--force-group-allocation, objcopy), found CMAKE_LINKER \"${CMAKE_LINKER}\", "
                        "CMAKE_OBJCOPY \"${CMAKE_OBJCOPY}\"")
  endif()

  string(MAKE_C_IDENTIFIER ${target} name)
  set(directory ${CMAKE_CURRENT_BINARY_DIR}/${target}_variants)
  file(MAKE_DIRECTORY ${directory})
  set(objects)
  set(declarations)
  set(entries)
  # From the oldest processor up, whatever the flags of the whole project say: without AVX there is nothing above it.
  set(options_sse2 -march=x86-64 -mno-avx)
  set(options_neon64 -march=armv8-a)
  set(options_avx2 ${options_sse2} -mavx2 -mfma -mbmi -mbmi2)
  set(options_avx512 ${options_avx2} -mavx512f -mavx512cd -mavx512dq -mavx512bw -mavx512vl)
  foreach(arch ${arg_ARCHS})
    set(symbol strata_variant_${name}_${arch})
    set(section strata_init_${name}_${arch})
    set(library ${target}_${arch})
    add_library(${library} OBJECT ${arg_SOURCES})
    target_compile_options(${library} PRIVATE ${options_${arch}} -fno-lto $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
    target_compile_definitions(${library} PRIVATE STRATA_DISPATCH_SYMBOL=${symbol})
    # What the target is given later, its variants are compiled with: target_link_libraries(<target> ...) and so on.
    target_include_directories(${library} PRIVATE $<TARGET_PROPERTY:${target},INCLUDE_DIRECTORIES>)
    target_compile_definitions(${library} PRIVATE $<TARGET_PROPERTY:${target},COMPILE_DEFINITIONS>)
    target_compile_options(${library} PRIVATE $<TARGET_PROPERTY:${target},COMPILE_OPTIONS>)
    target_link_libraries(${library} PRIVATE strata::strata $<TARGET_PROPERTY:${target},LINK_LIBRARIES>)
    set_target_properties(${library} PROPERTIES POSITION_INDEPENDENT_CODE ON INTERPROCEDURAL_OPTIMIZATION OFF)
    set(object ${directory}/${arch}.o)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${CMAKE_LINKER} -r --force-group-allocation -o ${object}.all $<TARGET_OBJECTS:${library}>
      COMMAND ${CMAKE_OBJCOPY} --keep-global-symbol=${symbol}
              --rename-section .init_array=${section},alloc,load,data,contents ${object}.all ${object}
      DEPENDS ${library} $<TARGET_OBJECTS:${library}>
      COMMENT "One object of ${target} for ${arch}"
      COMMAND_EXPAND_LISTS VERBATIM)
    list(APPEND objects ${object})
    string(APPEND declarations "extern \"C\" {
strata::VariantFunction ${symbol}() noexcept;
// Made by the linker; null if the variant has no global objects.
[[gnu::weak, gnu::visibility(\"hidden\")]] extern const Initialiser __start_${section}[];
[[gnu::weak, gnu::visibility(\"hidden\")]] extern const Initialiser __stop_${section}[];
}
static strata::VariantFunction enter_${arch}() noexcept {
  static const bool once = initialise(__start_${section}, __stop_${section});
  (void)once;
  return ${symbol}();
}
")
    string(APPEND entries "      {\"${arch}\", &enter_${arch}},\n")
  endforeach()

  file(CONFIGURE OUTPUT ${directory}/include/${name}_variants.hpp CONTENT
       "// Generated by strata_add_dispatched_library.
#pragma once

#include <span>

#include <strata/runtime/dispatch.hpp>

/// The variants of this library, for strata::Dispatcher.
std::span<const strata::Variant> ${name}_variants();
" @ONLY)
  file(CONFIGURE OUTPUT ${directory}/${target}_variants.cpp CONTENT
       "// Generated by strata_add_dispatched_library.
#include <${name}_variants.hpp>

using Initialiser = void (*)();

/// Makes the global objects of a variant.
static bool initialise(const Initialiser* first, const Initialiser* last) noexcept {
  for (; first != last; ++first) (*first)();
  return true;
}

${declarations}
std::span<const strata::Variant> ${name}_variants() {
  static const strata::Variant variants[] = {
${entries}  };
  return variants;
}
" @ONLY)
  add_library(${target} STATIC ${directory}/${target}_variants.cpp ${objects})
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_include_directories(${target} PUBLIC ${directory}/include)
  target_link_libraries(${target} PUBLIC strata::strata)
endfunction()
